"""The trainer as a child process: its messages as a queue, commands to its input, its end."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from subprocess import Popen
from tempfile import TemporaryFile
from threading import Lock, Thread

import msgspec
import structlog

from core.faults import VARIABLE as CRASH_VARIABLE
from core.memory import LARGE_PAGES
from models.spec import Said
from worker.affinity import Affinity

log = structlog.get_logger(__name__)
_decoder = msgspec.json.Decoder(Said)
_LAST_WORDS = 2000  # bytes
_PASSED_ON = {CRASH_VARIABLE, "GRAFTWORK_NATIVE"}


class Trainer:
    """A running trainer; `messages` ends with None when it has ended."""

    def __init__(self, folder: Path, *, cores_folder: Path) -> None:
        """Start it; its log is a file of `folder` that has no name and ends with both of us."""
        self.messages: SimpleQueue[Said | None] = SimpleQueue()
        self._asked: dict[str, set[str]] = {}
        """What was asked of each order that it has."""
        self._telling = Lock()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._log_file = TemporaryFile(dir=folder)  # noqa: SIM115 - read when the trainer has died
        self.process = Popen(
            [sys.executable, "-m", "worker.train.run"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log_file,
            start_new_session=True,
            env=_environment(),
        )
        self._affinity = Affinity(self.process.pid, folder=cores_folder)
        self._reader = Thread(target=self._read, name="reader", daemon=True)
        self._reader.start()

    def train(self, folder: Path) -> None:
        """Give it the order in a folder, which is called by the folder's name."""
        with self._telling:
            self._asked[folder.name] = set()
            self._tell(f"train {folder}")

    def ask(self, wish: str, order: str) -> None:
        """Ask something of an order that it has, once: `pause`, `stop` or `drop`; threads may."""
        with self._telling:
            asked = self._asked.get(order)
            if asked is not None and wish not in asked:
                asked.add(wish)
                self._tell(f"{wish} {order}")

    def forget(self, order: str) -> None:
        """Have it drop an order, if it has it still; nothing more can be asked of it."""
        self.ask("drop", order)
        with self._telling:
            self._asked.pop(order, None)

    def _tell(self, command: str) -> None:
        if self.process.stdin is None or self.process.stdin.closed:
            return
        try:
            self.process.stdin.write(f"{command}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            log.info("the trainer ended before it heard", command=command)

    def end(self) -> int:
        """Close its input, which ends it, kill its group if not, and return the exit code."""
        if self.process.stdin is not None:
            with self._telling, suppress(BrokenPipeError):
                self.process.stdin.close()
        try:
            self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._affinity.end()
        return self.process.returncode

    def last_words(self) -> str:
        """Return the end of its log."""
        descriptor = self._log_file.fileno()
        start = max(os.fstat(descriptor).st_size - _LAST_WORDS, 0)
        return os.pread(descriptor, _LAST_WORDS, start).decode(errors="replace")

    def _read(self) -> None:
        """Hand over each line; a line that is no message is the trainer's own bug: log it."""
        output = self.process.stdout
        for line in output or ():
            try:
                self.messages.put(_decoder.decode(line))
            except msgspec.MsgspecError:
                log.warning("not a trainer message", line=line[:200].decode(errors="replace"))
        self.messages.put(None)


def _environment() -> dict[str, str]:
    """Return our environment with large pages, without our settings, among which are secrets."""
    ours = {name for name in os.environ if name.startswith("GRAFTWORK_")} - _PASSED_ON
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return {**LARGE_PAGES, **kept, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
