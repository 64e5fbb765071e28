"""Child processes that cannot outlive their parent, and signals that mean "stop"."""

import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import Popen

PARENT_VARIABLE = "GRAFTWORK_PARENT_PID"
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, if the parent wants that.

    A parent says so by putting its own process id into `GRAFTWORK_PARENT_PID`. Comparing it with
    the real parent closes the gap in which the parent died before this call.
    """
    expected = os.environ.pop(PARENT_VARIABLE, None)
    if expected is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(expected):
        os._exit(1)


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return this environment with `extra` on top and the wish to die with this process."""
    return {**os.environ, **extra, PARENT_VARIABLE: str(os.getpid())}


def start_child(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, log: Path | None = None
) -> Popen[bytes]:
    """Start one of our own programs in its own session, so that Ctrl-C reaches only the parent."""
    output = log.open("ab") if log else None
    try:
        return Popen(
            command,
            env=child_environment(environment or {}),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    finally:
        if output:
            output.close()
