"""What the trainer says (JSON lines) and hears (a command a line), and the results as CSV."""

import csv
import os
import time
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any

import msgspec

from models.spec import FINAL, Alive, AnyTrainerMessage, Said
from worker.train.turns import Dropped, Interrupted

ALIVE_SECONDS = 10.0
EXIT_ORPHANED = 3
COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
_CSV_NAMES = {"train_mean_token_accuracy": "train_accuracy"}


class Pipe:
    """The pipe to the supervisor.

    It takes the real standard output for itself and sends whatever a library prints to stderr, so
    that no stray line can be taken for a message. A thread listens: the end of the input while
    there is work (the supervisor is dead) ends this process where it stands; every file that
    matters is written so that this is safe. `pause`, `stop` and `drop` wait until the order that
    they are for asks; of one that has ended, or never began, nothing is kept.
    """

    def __init__(self) -> None:
        self._output = os.dup(1)
        os.dup2(2, 1)
        self._folders: SimpleQueue[Path | None] = SimpleQueue()
        self._wishes: dict[str, str | None] = {}
        """What is asked of each order that has not ended."""
        self._lock = Lock()
        self._said_at = time.monotonic()
        Thread(target=self._listen, name="commands", daemon=True).start()

    def next_folder(self, *, wait: bool) -> Path | None:
        """Return the folder of an order; None if there is none yet, or at the end if `wait`."""
        with suppress(Empty):
            return self._folders.get(block=wait)
        return None

    def wish_for(self, order: str) -> str | None:
        """Return what was asked of an order: `pause`, `stop` or `drop`."""
        return self._wishes.get(order)

    def say(self, order: str, message: AnyTrainerMessage) -> None:
        """Write one message; returns when the supervisor's pipe has taken it."""
        line = memoryview(msgspec.json.encode(Said(order, message)) + b"\n")
        while line:
            line = line[os.write(self._output, line) :]
        self._said_at = time.monotonic()

    @property
    def silence(self) -> float:
        """Seconds since anything was said."""
        return time.monotonic() - self._said_at

    def end_order(self, order: str) -> None:
        """From here on the supervisor may go away, if this was the last order."""
        with self._lock:
            self._wishes.pop(order, None)

    def _listen(self) -> None:
        with os.fdopen(os.dup(0), "rb") as commands:
            for line in commands:
                command, _, argument = line.decode().strip().partition(" ")
                self._hear(command, argument)
        with self._lock:
            if self._wishes:
                os._exit(EXIT_ORPHANED)
        self._folders.put(None)

    def _hear(self, command: str, argument: str) -> None:
        with self._lock:
            if command == "train":
                folder = Path(argument)
                self._wishes[folder.name] = None
                self._folders.put(folder)
            elif argument in self._wishes:
                self._wishes[argument] = command


class Channel:
    """What one job says and hears on the pipe that it shares with others."""

    def __init__(self, order: str, pipe: Pipe) -> None:
        self._order = order
        self._pipe = pipe
        self._is_closed = False

    def say(self, message: AnyTrainerMessage) -> None:
        """Say something of this job; the supervisor may go away once it has heard the last word."""
        if isinstance(message, FINAL):
            self.close()
        self._pipe.say(self._order, message)

    def stay_alive(self) -> None:
        """Say so after a long silence; called often by work that has nothing else to say."""
        if self._pipe.silence > ALIVE_SECONDS:
            self.say(Alive())

    def check(self) -> None:
        """Raise `Interrupted` if a pause or stop was asked for, `Dropped` if the end was."""
        self.stay_alive()
        wish = self._pipe.wish_for(self._order)
        if wish == "drop":
            raise Dropped
        if wish is not None:
            raise Interrupted

    def close(self) -> None:
        """Have the job done with, said or not."""
        if not self._is_closed:
            self._is_closed = True
            self._pipe.end_order(self._order)


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
