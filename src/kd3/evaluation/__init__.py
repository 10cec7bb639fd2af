"""Quality of a classifier, leaks, compatibility, and the distance of a pool from the training data."""
