"""`python -m benchmarks.train.script QUESTION.json FOLDER`: what a user of peft would run as a job.

A process that imports the libraries, loads the base, trains, saves the adapter and ends.
"""

import json
import sys
from pathlib import Path

from benchmarks.train.peer import build
from benchmarks.train.trainer import run


def main() -> None:
    """Train one job and print what was measured."""
    question = json.loads(Path(sys.argv[1]).read_bytes())
    said = run(question, build=build, save_to=Path(sys.argv[2]))
    print(json.dumps(said))


if __name__ == "__main__":
    main()
