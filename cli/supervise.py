"""Keeps a few programs running as one: starts them, restarts those that die, stops them in order.

Each child leads its own session, so Ctrl-C reaches only the supervisor, which then decides. If
the supervisor itself is killed the kernel kills the children: see `core.process`.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen

from core.process import start_child

TICK_SECONDS = 0.1
QUICK_SECONDS = 20.0
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
QUICK_DEATHS = 4
LOG_BYTES = 16 * 1024 * 1024


class GaveUp(Exception):
    """A program died again and again right after its start."""

    def __init__(self, program: "Program", reason: str) -> None:
        super().__init__(reason)
        self.program = program
        self.reason = reason


@dataclass
class Program:
    """One child: how to start it, how long it may take to stop, and how it has fared."""

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    grace_seconds: float = 10.0
    disposable: Path | None = None  # emptied when the program dies quickly: it may be the cause
    child: Popen[bytes] | None = None
    quick_deaths: int = 0
    started: float = 0.0
    start_at: float = 0.0

    def start(self) -> None:
        """Start the child; its output is appended to the log."""
        self.started = time.monotonic()
        self.child = start_child(self.command, environment=self.environment, log=self.log)

    def died(self) -> str | None:
        """Return how the child ended if it has; what is left of its group is killed."""
        if self.child is None or (code := self.child.poll()) is None:
            return None
        kill_group(self.child)
        self.child = None
        quick = time.monotonic() - self.started < QUICK_SECONDS
        self.quick_deaths = self.quick_deaths + 1 if quick else 0
        if quick and self.disposable:
            shutil.rmtree(self.disposable, ignore_errors=True)
            self.disposable.mkdir(parents=True, mode=0o700)
        wait = FIRST_WAIT_SECONDS * 2**self.quick_deaths
        self.start_at = time.monotonic() + min(wait, LONGEST_WAIT_SECONDS)
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


class Supervisor:
    """Runs programs until it is told to stop; earlier ones are needed by later ones."""

    def __init__(self, programs: Sequence[Program], *, say: Callable[[str], None]) -> None:
        self._programs = programs
        self._say = say
        self._signals = 0

    def __enter__(self) -> "Supervisor":
        """Take over the signals that mean "stop"."""
        wanted = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            wanted.append(signal.SIGHUP)
        self._handlers = {number: signal.signal(number, self._count) for number in wanted}
        return self

    def __exit__(self, *_: object) -> None:
        """Stop whatever runs, then give the signals back."""
        self._stop()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @property
    def stopping(self) -> bool:
        """Whether somebody asked to stop."""
        return self._signals > 0

    def run(self, until: Callable[[], bool] | None = None) -> None:
        """Start what is not running and keep it so, until told to stop or `until()` is true."""
        while not self.stopping:
            for program in self._programs:
                self._tend(program)
            if until and until():
                return
            time.sleep(TICK_SECONDS)

    def _tend(self, program: Program) -> None:
        if end := program.died():
            if program.quick_deaths >= QUICK_DEATHS:
                raise GaveUp(program, f"{program.name} {end}, {QUICK_DEATHS} times in a row")
            self._say(f"{program.name} {end}; starting it again.")
        if program.child is None and time.monotonic() >= program.start_at:
            program.start()

    def _stop(self) -> None:
        """SIGTERM from the last program to the first, each within its grace, then SIGKILL."""
        for program in reversed(self._programs):
            if program.child is None:
                continue
            program.child.terminate()
            deadline = time.monotonic() + program.grace_seconds
            while program.child.poll() is None:
                if self._signals > 1 or time.monotonic() > deadline:
                    break
                time.sleep(TICK_SECONDS)
            kill_group(program.child)
            program.child.wait()
            program.child = None

    def _count(self, _number: int, _frame: object) -> None:
        self._signals += 1


def kill_group(child: Popen[bytes]) -> None:
    """Kill a child and everything in the session that it leads."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def rotate(log: Path) -> Path:
    """Put a long log aside, so that a new start begins a new one."""
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    return log


def tail(log: Path, *, lines: int = 20) -> str:
    """Return the last lines of a log."""
    if not log.exists():
        return ""
    return "\n".join(log.read_bytes()[-64_000:].decode(errors="replace").splitlines()[-lines:])
