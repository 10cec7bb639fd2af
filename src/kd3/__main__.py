"""`python -m kd3` is `kd3`."""

import sys

from kd3.cli import main

if __name__ == "__main__":
    sys.exit(main())
