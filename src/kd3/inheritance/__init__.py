"""Knowledge that crosses from teacher to student beside the loss: weights at the start, statistics at the end."""
