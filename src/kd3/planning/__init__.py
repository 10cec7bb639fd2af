"""`kd3 plan`: a recommended student, the cost of a run and its expected result, from a minute of measuring."""
