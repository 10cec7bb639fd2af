"""A run's folder: the place of everything that a run writes. Free of torch."""
