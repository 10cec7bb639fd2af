"""Foundations of every package: device, ranks, signals, terminal, errors, files and folders."""
