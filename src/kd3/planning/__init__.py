"""`kd3 plan`: recommended student, cost and expected result of a run, from a minute of measurements."""
