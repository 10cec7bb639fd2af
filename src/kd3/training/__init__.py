"""The training loop and what it stands on: device, schedule, augmentation, scoring, checkpoints."""
