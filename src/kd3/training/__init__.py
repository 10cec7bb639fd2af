"""The training loop and its foundations: device, schedule, augmentation, scoring, checkpoints."""
