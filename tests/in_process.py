"""The command line without a separate process, which saves seconds per call."""

import contextlib
import io
import os
import sys
from dataclasses import dataclass

import kd3.__main__
from kd3.cli import main


@dataclass
class Done:
    """The results of a process: status and output."""

    returncode: int
    stdout: str
    stderr: str


def here(*words, cwd=None):
    """Run `kd3 WORDS` in this process."""
    output, errors = io.StringIO(), io.StringIO()
    before, called_as = os.getcwd(), sys.argv
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            os.chdir(cwd or before)
            sys.argv = [kd3.__main__.__file__, *map(str, words)]  # pytest-xdist's own has no file
            status = main([str(word) for word in words])
        except SystemExit as end:  # argparse, after --help
            status = int(end.code or 0)
        finally:
            os.chdir(before)
            sys.argv = called_as
    return Done(status, output.getvalue(), errors.getvalue())
