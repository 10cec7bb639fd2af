"""The two libraries that only the demo needs."""

from __future__ import annotations

from importlib.util import find_spec

from kd3.errors import KD3Error

_LIBRARIES = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}


def check_extras() -> None:
    """Name missing packages before the demo has written a file.

    Raises:
        KD3Error: scikit-learn or matplotlib is not installed.
    """
    missing = [name for module, name in _LIBRARIES.items() if find_spec(module) is None]
    if missing:
        raise KD3Error(f"kd3 demo needs {' and '.join(missing)}: pip install 'kd3[demo]'")
