import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli.supervise import GaveUp, Program, Supervisor, rotate, tail
from tests.processes import is_alive, wait_for

SLEEPER = [sys.executable, "-m", "cli.become", "/bin/sleep", "60"]
DRIVER = """
import sys
from pathlib import Path
from cli.supervise import Program, Supervisor
folder = Path(sys.argv[1])
command = [sys.executable, "-m", "cli.become", "/bin/sh", "-c"]
def part(name):
    script = f"trap 'echo {name} >> {folder}/stopped; exit 0' TERM; echo $$ > {folder}/{name}.pid;"
    script += "while :; do sleep 0.05; done"
    return Program(name, [*command, script], log=folder / f"{name}.log")
with Supervisor([part("first"), part("second")], say=print) as supervisor:
    supervisor.run()
"""


@pytest.fixture
def driver(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)],
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # noqa: PLW1509 - below nohup too
    )
    wait_for(lambda: all(_pid(tmp_path, name) for name in ("first", "second")))
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _pid(folder: Path, name: str) -> int:
    path = folder / f"{name}.pid"
    return int(path.read_text() or 0) if path.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_later_program_first(driver, tmp_path: Path, number: int) -> None:
    pids = [_pid(tmp_path, name) for name in ("first", "second")]
    driver.send_signal(number)
    assert driver.wait(timeout=20) == 0
    assert (tmp_path / "stopped").read_text().split() == ["second", "first"]
    assert not any(map(is_alive, pids))


def test_a_killed_supervisor_leaves_no_orphan(driver, tmp_path: Path) -> None:
    pids = [_pid(tmp_path, name) for name in ("first", "second")]
    driver.kill()
    driver.wait()
    wait_for(lambda: not any(map(is_alive, pids)))


def test_a_dead_program_is_started_again(tmp_path: Path) -> None:
    said: list[str] = []
    program = Program("sleeper", SLEEPER, log=tmp_path / "log")
    with Supervisor([program], say=said.append) as supervisor:
        supervisor.run(until=lambda: program.child is not None)
        first = program.child.pid
        program.child.kill()
        supervisor.run(until=lambda: program.child is not None and program.child.pid != first)
        second = program.child.pid
    assert said == ["sleeper was killed by SIGKILL; starting it again."]
    assert not is_alive(second)


def test_a_program_that_cannot_start_ends_the_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("cli.supervise.FIRST_WAIT_SECONDS", 0.01)
    broken = [sys.executable, "-c", "import sys; print('no disk'); sys.exit(3)"]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "broken").touch()
    program = Program("broken", broken, log=tmp_path / "log", disposable=scratch)
    with (
        pytest.raises(GaveUp, match="broken ended with 3, 4 times in a row"),
        Supervisor([program], say=lambda line: None) as supervisor,
    ):
        supervisor.run()
    assert tail(program.log, lines=1) == "no disk"
    assert list(scratch.iterdir()) == []


def test_a_program_that_does_not_listen_is_killed_after_its_grace(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    deaf = ["/bin/sh", "-c", f"trap '' TERM; touch {ready}; while :; do sleep 0.05; done"]
    program = Program("deaf", deaf, log=tmp_path / "log", grace_seconds=0.3)
    with Supervisor([program], say=print) as supervisor:
        supervisor.run(until=ready.exists)
        pid = program.child.pid
    assert not is_alive(pid)


def test_a_long_log_is_put_aside(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("cli.supervise.LOG_BYTES", 10)
    log = tmp_path / "api.log"
    log.write_text("x" * 11)
    assert rotate(log) == log
    assert not log.exists()
    assert (tmp_path / "api.log.1").exists()
    assert tail(log) == ""
