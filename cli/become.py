"""Becomes another program that dies with its parent: `python -m cli.become COMMAND ...`."""

import os
import sys

from core.process import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606
