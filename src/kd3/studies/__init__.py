"""Grids of runs and their tables, the published data sets, and the advice before a run."""
