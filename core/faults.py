"""Places where a test may have this process die, to prove that dying there loses nothing."""

import os
import signal
from collections import Counter

VARIABLE = "GRAFTWORK_CRASH"
_passed: Counter[str] = Counter()


def crash_point(name: str) -> None:
    """Die at once if `GRAFTWORK_CRASH` is `name`, or `name:n` and this is the n-th time here."""
    wanted, _, count = os.environ.get(VARIABLE, "").partition(":")
    if wanted != name:
        return
    _passed[name] += 1
    if _passed[name] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)
