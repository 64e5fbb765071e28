"""A side that says what it was asked, for the tests of the harness."""

import os
import sys
from typing import Any

from benchmarks.sides import serve


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Give the question back; fail or vanish if it asks for that."""
    if question.get("fail"):
        raise ValueError(question["fail"])
    if question.get("vanish"):
        sys.stderr.write("gone for good\n")
        os._exit(3)
    sys.stdout.write("a library's own words\n")
    sys.stdout.flush()
    return {**question, "by": sys.argv[1], "threads": os.environ["OMP_NUM_THREADS"]}


if __name__ == "__main__":
    serve(answer)
