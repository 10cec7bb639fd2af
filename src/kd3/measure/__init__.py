"""How good a classifier is: functions of logits and labels."""
