"""Settings: one definition of each, from which flags, YAML keys, checks and documentation follow."""
