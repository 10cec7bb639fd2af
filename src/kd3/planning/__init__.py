"""`kd3 plan`: which student, what a run costs, what to expect; from a minute of measuring."""
