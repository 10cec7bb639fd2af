"""How fast kd3 is, beside the common way of doing the same and beside the bare bound; not installed."""
