"""The ground that all rooms stand on: device, ranks, signals, terminal, errors, files and folders."""
