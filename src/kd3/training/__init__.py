"""The training loop: steps, optimizer, checkpoints, records, trackers."""
