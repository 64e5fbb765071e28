"""The whole installation as a user runs it, on a tiny base."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.processes import descendants, is_alive, wait_for
from tests.tiny import make_tiny_base

GRAFTWORK = [sys.executable, "-m", "cli"]
KEY = re.compile(r"^  (gw-[\w-]+)$", re.MULTILINE)


class Installation:
    """One data directory, and commands run on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "GRAFTWORK_DATA_DIR": str(folder / "data"),
            "GRAFTWORK_CACHE_DIR": str(folder / "cache"),
            "GRAFTWORK_BASE": "tiny",
            "OMP_NUM_THREADS": "1",
            "PYTHONSAFEPATH": "1",
        }
        self.environment.pop("GRAFTWORK_API_KEY", None)
        self.output = folder / "serve.out"

    def run(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*GRAFTWORK, *arguments],
            env={**self.environment, **extra},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def serve(self, *arguments: str, **extra: str) -> subprocess.Popen[bytes]:
        with self.output.open("wb") as output:
            process = subprocess.Popen(
                [*GRAFTWORK, "serve", *arguments],
                env={**self.environment, **extra},
                cwd=self.folder,
                stdout=output,
                stderr=output,
            )
        wait_for(lambda: "Ctrl-C stops" in self.said or process.poll() is not None, seconds=120)
        assert process.poll() is None, self.said
        return process

    @property
    def said(self) -> str:
        return self.output.read_text()

    @property
    def url(self) -> str:
        found = re.search(r"API +(http://[\d.:]+/v1)", self.said)
        assert found, self.said
        return found[1]


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    folder = tmp_path_factory.mktemp("installation")
    made = Installation(folder)
    base = make_tiny_base(folder / "base")
    pulled = made.run("pull", "--from", str(base), "tiny")
    assert pulled.returncode == 0, pulled.stderr
    return made


@pytest.fixture(scope="module")
def served(installation: Installation) -> Iterator[tuple[Installation, subprocess.Popen[bytes]]]:
    process = installation.serve("--port", "0")
    yield installation, process
    if process.poll() is None:
        process.kill()
    process.wait()


def test_an_imported_base_is_replaced_only_by_force(installation: Installation) -> None:
    source = str(installation.folder / "base")
    refused = installation.run("pull", "--from", source, "tiny")
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    assert installation.run("pull", "--from", source, "tiny", "--force").returncode == 0
    for name in ("tiny", ".."):  # nowhere to be had: nothing may go
        assert installation.run("pull", name, "--force").returncode == 1
    assert (installation.folder / "data" / "bases" / "tiny" / "config.json").is_file()


def test_the_data_directory_is_its_owners_alone(installation: Installation) -> None:
    assert (installation.folder / "data").stat().st_mode & 0o777 == 0o700


def test_keys_of_a_missing_folder_make_nothing(installation: Installation, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    listed = installation.run("keys", "list", "--data-dir", str(missing))
    assert listed.returncode == 1
    assert "graftwork serve" in listed.stderr
    assert not missing.exists()


@pytest.mark.parametrize("command", ["serve", "pull", "api", "worker", "engine", "migrate"])
def test_a_folder_that_cannot_be_made_is_named(installation: Installation, command: str) -> None:
    refused = installation.run(command, "--data-dir", "/sys/graftwork")
    assert refused.returncode == 1
    assert "/sys/graftwork cannot be made" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
def test_an_address_of_others_is_not_taken_for_a_port(
    installation: Installation, tmp_path: Path, host: str
) -> None:
    refused = installation.run("serve", "--host", host, "--data-dir", str(tmp_path))
    assert refused.returncode == 1
    assert f"Cannot listen on {host}" in refused.stderr
    assert "--port" not in refused.stderr
    assert "--host" in refused.stderr


def test_an_unknown_base_names_the_way_in(installation: Installation) -> None:
    refused = installation.run("pull", "nosuchmodel")
    assert refused.returncode == 1
    assert "--from FOLDER" in refused.stderr


@pytest.mark.parametrize("default", ["./.graftwork", "127.0.0.1", "8000"])
def test_help_shows_the_defaults(installation: Installation, default: str) -> None:
    assert default in installation.run("serve", "--help").stdout


def test_first_start_shows_a_key_that_opens_the_api(served) -> None:
    installation, _ = served
    found = KEY.findall(installation.said)
    assert len(found) == 1
    assert "embedded" in installation.said
    answer = httpx.get(
        f"{installation.url}/models", headers={"Authorization": f"Bearer {found[0]}"}
    )
    assert [model["id"] for model in answer.json()["data"]] == ["tiny"]
    installation.environment["GRAFTWORK_API_KEY"] = found[0]
    installation.environment["GRAFTWORK_BASE_URL"] = installation.url


def test_a_data_directory_is_served_once(served) -> None:
    installation, process = served
    second = installation.run("serve", "--port", "0")
    assert second.returncode == 1
    assert f"process {process.pid}" in second.stderr


def test_a_taken_port_names_the_way_out(served, tmp_path: Path) -> None:
    installation, _ = served
    port = installation.url.split(":")[2].removesuffix("/v1")
    other = installation.run("serve", "--data-dir", str(tmp_path), "--port", port)
    assert other.returncode == 1
    assert f"--port {int(port) + 1}" in other.stderr


def test_doctor_knows_our_own_api(served) -> None:
    installation, _ = served
    port = installation.url.split(":")[2].removesuffix("/v1")
    told = installation.run("doctor", "--port", port)
    assert told.returncode == 0, told.stdout
    assert "a Graftwork api answers" in told.stdout
    assert "tiny verified" in told.stdout


def test_keys_are_made_listed_and_revoked(served) -> None:
    installation, _ = served
    made = installation.run("keys", "create", "--tenant", "team-b", "--name", "my [/old] laptop")
    secret, key_id = made.stdout.strip(), made.stderr.split()[0]
    headers = {"Authorization": f"Bearer {secret}"}
    assert httpx.get(f"{installation.url}/models", headers=headers).status_code == 200
    listed = installation.run("keys", "list").stdout
    assert key_id in listed
    assert secret not in listed
    assert installation.run("keys", "revoke", key_id).returncode == 0
    assert httpx.get(f"{installation.url}/models", headers=headers).status_code == 401
    assert "revoked" in installation.run("keys", "list").stdout
    again = installation.run("keys", "revoke", key_id)
    assert again.returncode == 1
    assert "No open key" in again.stderr


def test_train_watches_to_the_end_and_chat_calls_the_result(served, tmp_path: Path) -> None:
    installation, _ = served
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "y"}]}
        for n in range(4)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    trained = installation.run(
        "train", str(data), "--option", "rank=2", "--epochs", "1", "--suffix", "cli", "--watch"
    )
    assert trained.returncode == 0, trained.stderr
    name = trained.stdout.strip()
    assert re.fullmatch(r"ft:tiny:default:cli:\w{8}", name)
    assert "loss" in trained.stderr
    for arguments in ((), (name,)):
        answer = installation.run("chat", *arguments, "--prompt", "2?", "--max-tokens", "3")
        assert answer.returncode == 0, answer.stderr
    listed = subprocess.run(
        [*GRAFTWORK, "chat"],
        input=f"/models\n/model {name}\n/reset\n/nonsense\n",
        env=installation.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert listed.returncode == 0
    assert name in listed.stdout


def test_a_bad_file_is_told_line_by_line(served, tmp_path: Path) -> None:
    installation, _ = served
    data = tmp_path / "bad.jsonl"
    data.write_text('{"messages": []}\nnot json\n')
    refused = installation.run("train", str(data), "--watch")
    assert refused.returncode == 1
    assert refused.stderr.lower().count("line 1:") == 1
    assert refused.stderr.lower().count("line 2:") == 1


def test_an_unknown_option_is_refused_by_name(served, tmp_path: Path) -> None:
    installation, _ = served
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "a"}\n')
    refused = installation.run("train", str(data), "--option", "ranks=2")
    assert refused.returncode == 1
    assert "ranks" in refused.stderr


def test_interrupt_stops_every_program_and_the_next_start_shows_no_key(served) -> None:
    installation, process = served
    children = descendants(process.pid)
    assert len(children) >= 4
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    assert not any(map(is_alive, children))

    again = installation.serve("--port", "0")
    try:
        assert not KEY.findall(installation.said)
        children = descendants(again.pid)
    finally:
        again.kill()
        again.wait()
    assert len(children) >= 4
    wait_for(lambda: not any(map(is_alive, children)))


def test_a_program_that_cannot_start_is_shown_with_its_log(installation: Installation) -> None:
    failed = installation.run("serve", "--port", "0", GRAFTWORK_STORE_URL="file:///proc/nonsense")
    assert failed.returncode == 1
    assert "in a row" in failed.stderr
    assert "/proc/nonsense" in failed.stderr
