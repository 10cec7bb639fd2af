"""A run's folder: where everything a run leaves behind has its place. Free of torch."""
