"""`python -m kd3` is `kd3`."""

from kd3.cli import process

if __name__ == "__main__":
    process()
