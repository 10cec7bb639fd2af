"""Quality of a classifier: functions of logits and labels."""
