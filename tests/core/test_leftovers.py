"""What killed programs left goes; what others still use stays."""

import os
import subprocess
import sys
from pathlib import Path

from core.leftovers import STALE_SECONDS, remove_stale, scratch_folder

KILLED = """
import os, sys
from pathlib import Path
from core.leftovers import scratch_folder

with scratch_folder(Path(sys.argv[1])) as own:
    (own / "file").touch()
    os._exit(0)
"""


def test_a_scratch_folder_is_gone_at_its_end(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "new") as own:
        (own / "file").touch()
        assert list((tmp_path / "new").iterdir()) == [own]
    assert list((tmp_path / "new").iterdir()) == []


def test_that_of_a_killed_program_goes_at_once_and_one_in_use_stays(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as own:
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=True)
        assert len(list(tmp_path.iterdir())) == 2
        remove_stale(tmp_path)
        assert list(tmp_path.iterdir()) == [own]


def test_anything_else_goes_after_a_day(tmp_path: Path) -> None:
    for name in ("old", "fresh"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
        (tmp_path / f"{name}.zip").touch()
    for path in (tmp_path / "old", tmp_path / "old.zip"):
        os.utime(path, (0, path.stat().st_mtime - STALE_SECONDS - 1))
    remove_stale(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "fresh.zip"]
