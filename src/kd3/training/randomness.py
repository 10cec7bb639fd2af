"""Random numbers by place, not by history: a resumed run draws the same numbers as an uninterrupted one."""

from __future__ import annotations

import hashlib

import torch


def seed_for(seed: int, *place: int | str) -> int:
    """Return a seed for one place of a run, such as ("step", 17); the same on every machine."""
    digest = hashlib.blake2b(repr((seed, *place)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(device: torch.device, seed: int, *place: int | str) -> torch.Generator:
    """Return a generator seeded for one place of a run."""
    return torch.Generator(device).manual_seed(seed_for(seed, *place))
