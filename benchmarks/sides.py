"""The sides of a comparison: each a process of its own that measures when it is asked.

All get the same threads and allocator settings, unless one says otherwise. Questions and answers
are JSON lines over its standard streams, so that rounds can be interleaved while each side keeps
its base loaded. One whose answer was taken is stopped until it is asked again: threads that spin,
or poll, take no core from the others. A side's module calls `serve` with what answers a question.
Nothing but the standard library is imported here: a peer's own environment has none of our
packages.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from statistics import median
from typing import Any, Self, TypeVar

ItemT = TypeVar("ItemT")
JSON = dict[str, Any]
ROOT = Path(__file__).parents[1]
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""glibc's settings under which a large tensor reuses pages, large ones: they help every side."""
STOP_SECONDS = 30.0
ANSWER_SECONDS = 1800.0
"""A side that has said nothing for so long never will."""
OF_THE_MACHINE = frozenset({"GRAFTWORK_NATIVE", "GRAFTWORK_CACHE_DIR"})
"""Settings that say what our sides may use, and not what they do."""


class SideFailed(RuntimeError):
    """A side could not measure; the message holds its own words."""


def start_plain() -> None:
    """Have our sides do what they do by themselves, whatever this shell's settings are.

    Exits where a `.env` would say otherwise: it is read from the folder that a program starts in.
    """
    for folder in (Path.cwd(), ROOT):
        if (folder / ".env").exists():
            sys.exit(
                f"{folder / '.env'} would change what is measured: put it elsewhere meanwhile."
            )
    for name in [name for name in os.environ if name.startswith("GRAFTWORK_")]:
        if name not in OF_THE_MACHINE:
            del os.environ[name]


def cores() -> list[int]:
    """Return the cores that this process, and so every side, may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def environment(*, threads: int | None = None, keep_memory: bool = True) -> dict[str, str]:
    """Return the environment of a side: this one, with threads and allocator set."""
    count = str(threads or len(cores()))
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "GLIBC_"))
    }
    return {
        **inherited,
        **(KEEP_FREED_MEMORY if keep_memory else {}),
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
    }


class Side:
    """A running side; use it as a context manager."""

    def __init__(
        self,
        name: str,
        module: str,
        *arguments: str,
        log: Path,
        python: Path | str = sys.executable,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Start `python -m module arguments`; what it prints besides answers goes to `log`."""
        self.name = name
        self._log = log
        self._owes = False
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [str(python), "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=dict(variables) if variables is not None else environment(),
                cwd=ROOT,
                text=True,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, question: JSON) -> JSON:
        """Send a question, wait for the answer; `SideFailed` if the side could not give one."""
        self.put(question)
        return self.take()

    def put(self, question: JSON) -> None:
        """Send a question whose answer is taken before the next one is put."""
        if self.process.stdin is None or self._owes:
            raise SideFailed(f"{self.name} has no standard input, or an answer that none took.")
        self._owes = True
        self._signal(signal.SIGCONT)
        with suppress(BrokenPipeError):  # of a side that ended: its answer will be missing
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()

    def take(self) -> JSON:
        """Wait for the answer to what was put; `SideFailed` if the side could not give one."""
        if self.process.stdout is None or not self._owes:
            raise SideFailed(f"{self.name} has no standard output, or was not asked.")
        ready, _, _ = select.select([self.process.stdout], [], [], ANSWER_SECONDS)
        line = self.process.stdout.readline() if ready else ""
        self._owes = False
        self._signal(signal.SIGSTOP)
        if not line:
            what = "ended" if ready else f"said nothing for {ANSWER_SECONDS:.0f} s"
            raise SideFailed(f"{self.name} {what}:\n{self._last_words()}")
        answer: JSON = json.loads(line)
        if "failure" in answer:
            raise SideFailed(f"{self.name} failed:\n{answer['failure']}")
        return answer

    def dismiss(self) -> None:
        """Close its input, at which it ends; several sides then end side by side."""
        self._signal(signal.SIGCONT)
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):  # a question may be left that an ended one never read
                self.process.stdin.close()

    def close(self) -> None:
        """Wait until it has ended; kill it if it does not, and what it left running."""
        self.dismiss()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        self._signal(signal.SIGKILL)
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the side and to the processes that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _last_words(self) -> str:
        return self._log.read_bytes()[-3000:].decode(errors="replace")


def serve(answer: Callable[[JSON], JSON]) -> None:
    """Answer questions from standard input until it ends; prints of libraries go to stderr."""
    with os.fdopen(os.dup(1), "w") as output:
        os.dup2(2, 1)
        for line in sys.stdin:
            try:
                said = answer(json.loads(line))
            except Exception:  # noqa: BLE001 - the asker decides what a failure means
                said = {"failure": traceback.format_exc()}
            output.write(json.dumps(said) + "\n")
            output.flush()


def rotated(items: Sequence[ItemT], round_: int) -> list[ItemT]:
    """Return the items in their order, beginning with another one each round."""
    first = round_ % len(items) if items else 0
    return [*items[first:], *items[:first]]


def interleave(
    sides: Sequence[Side], questions: Mapping[str, JSON], *, repeats: int, patience: float = inf
) -> dict[str, list[JSON]]:
    """Ask every side its question `repeats` times, in turns that begin with another each round.

    A round that has taken longer than `patience` seconds is the last one.
    """
    answers: dict[str, list[JSON]] = {side.name: [] for side in sides}
    for round_ in range(repeats):
        began = time.monotonic()
        for side in rotated(sides, round_):
            answers[side.name].append(side.ask(questions[side.name]))
        if time.monotonic() - began > patience:
            break
    return answers


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Return the median of the first over the median of the second."""
    return round(median(over) / median(under), 3)
