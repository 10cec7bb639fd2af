"""Restore the lost data's batch-norm statistics in a finished student, with images recalled from the teacher."""
