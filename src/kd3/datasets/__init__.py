"""Preparation of the paper's data sets: published files become pools, training sets and test sets."""
