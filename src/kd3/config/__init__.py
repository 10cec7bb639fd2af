"""Settings: each defined once, as the source of flags, YAML keys, checks and documentation."""
