"""Students in formats that run without kd3: written, run, compared, measured."""
