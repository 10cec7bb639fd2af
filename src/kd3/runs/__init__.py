"""A run's folder: the place of all files of a run. Free of torch."""
