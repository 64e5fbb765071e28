"""Child processes that cannot outlive their parent, and signals that mean "stop"."""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import Popen

PARENT_VARIABLE = "GRAFTWORK_PARENT_PID"
_PR_SET_PDEATHSIG = 1
_FILES = 65536


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


def allow_connections() -> None:
    """Let this process open as many files as it may, or 65536 if that is less.

    Shells and services start programs with 1024. A request that waits holds two of them in the api,
    so that half of the line would be refused.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # a system may have a limit besides
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


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
