"""Students in forms that run without kd3: written, run, compared, measured."""
