"""What the trainer says (JSON lines) and hears (a word a line), and the results as CSV."""

import csv
import os
import time
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec

from models.spec import Alive, TrainerMessage

ALIVE_SECONDS = 10.0
EXIT_ORPHANED = 3
COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
_CSV_NAMES = {"train_mean_token_accuracy": "train_accuracy"}


class Interrupted(Exception):
    """Somebody asked for a pause or a stop: save and end."""


class Channel:
    """The pipe to the supervisor.

    It takes the real standard output for itself and sends whatever a library prints to stderr, so
    that no stray line can be taken for a message. A thread listens: the end of the input (the
    supervisor is dead, or done with this run) ends this process where it stands; every file that
    matters is written so that this is safe. `pause` and `stop` wait until the loop asks.
    """

    def __init__(self) -> None:
        self._output = os.dup(1)
        os.dup2(2, 1)
        self._asked = False
        self._closed = False
        self._said_at = time.monotonic()
        Thread(target=self._listen, name="commands", daemon=True).start()

    def say(self, message: TrainerMessage) -> None:
        """Write one message; returns when the supervisor's pipe has taken it."""
        line = memoryview(msgspec.json.encode(message) + b"\n")
        while line:
            line = line[os.write(self._output, line) :]
        self._said_at = time.monotonic()

    def stay_alive(self) -> None:
        """Say so after a long silence; called often by work that has nothing else to say."""
        if time.monotonic() - self._said_at > ALIVE_SECONDS:
            self.say(Alive())

    def check(self) -> None:
        """Raise `Interrupted` if a pause or stop was asked for; called between micro-batches."""
        self.stay_alive()
        if self._asked:
            raise Interrupted

    def close(self) -> None:
        """From here on the supervisor may go away: all is said."""
        self._closed = True

    def _listen(self) -> None:
        with os.fdopen(os.dup(0), "rb") as commands:
            for line in commands:
                if line.strip() in (b"pause", b"stop"):
                    self._asked = True
        if not self._closed:
            os._exit(EXIT_ORPHANED)


class StepValues(msgspec.Struct, frozen=True):
    """What was measured at one step: while training, or in an evaluation."""

    step: int
    values: dict[str, float]


def write_results(path: Path, history: list[StepValues]) -> None:
    """Write the metrics of every step in the columns of OpenAI's result files."""
    rows: dict[int, dict[str, Any]] = {}
    for entry in history:
        row = rows.setdefault(entry.step, {"step": entry.step})
        row.update({_CSV_NAMES.get(name, name): value for name, value in entry.values.items()})
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[step] for step in sorted(rows))
