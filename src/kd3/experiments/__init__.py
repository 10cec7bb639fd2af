"""Studies: many runs for one question, and the resulting table."""
