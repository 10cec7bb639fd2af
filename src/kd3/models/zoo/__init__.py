"""Classifiers for small images (32 and 64 px): `names` lists them without torch, `build` makes one."""
