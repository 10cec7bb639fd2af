"""Benchmarks of kd3 against the common way and a speed limit; not installed."""
