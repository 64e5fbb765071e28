"""What a program says goes to stderr, in one format, from the level on that was set."""

import subprocess
import sys

import pytest

INDEX = """
from core.log import configure_logging
from core.settings import Settings
configure_logging(Settings(log_level={level!r}), process="engine")
from models.nn.similarity import WordIndex
WordIndex(["one text", "another"])
"""


@pytest.mark.parametrize(("level", "says"), [("WARNING", False), ("DEBUG", True)])
def test_a_library_that_wants_to_say_more_is_not_asked(level: str, says: bool) -> None:
    command = [sys.executable, "-c", INDEX.format(level=level)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ("index" in done.stderr) == says
