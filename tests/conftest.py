"""Fixtures that all tests share."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The shared real data; tests that need it are skipped where it is absent."""
    place = Path(os.environ.get("KD3_SHARED", REPOSITORY.parent / "shared"))
    if not (place / "data").is_dir():
        pytest.skip(f"the shared data are not at {place} (set KD3_SHARED)")
    return place / "data"
