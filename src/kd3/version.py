"""The version of this package, at the bottom of its import graph."""

__version__ = "0.1.0"
