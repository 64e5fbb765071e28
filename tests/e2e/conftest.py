"""The whole system as `graftwork serve` starts it, once per kind of service, and its SDK client."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from tests.conftest import fresh_postgres
from tests.processes import descendants, is_alive, wait_for
from tests.tiny import make_tiny_base

KEY = "gw-test-key-of-the-end-to-end-suite"
ENDED = ("succeeded", "failed", "cancelled")


class System:
    """A running installation."""

    def __init__(self, folder: Path, *, base: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self._output = folder / "serve.out"
        self._environment = {
            **os.environ,
            "GRAFTWORK_BASE": "tiny",
            "GRAFTWORK_BOOTSTRAP_KEY": KEY,
            "GRAFTWORK_CACHE_DIR": str(folder / "cache"),
            "GRAFTWORK_DATA_DIR": str(folder / "data"),
            "GRAFTWORK_WORKER__LEASE_SECONDS": "4",
            "GRAFTWORK_WORKER__POLL_SECONDS": "0.3",
            "GRAFTWORK_WORKER__RESUME_SECONDS": "0.5",
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        subprocess.run(
            [sys.executable, "-m", "cli", "pull", "tiny", "--from", str(base)],
            env=self._environment,
            check=True,
        )
        self.start()

    def start(self) -> None:
        """Start `graftwork serve` and wait for its banner."""
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli", "serve", "--port", "0"],
                env=self._environment,
                stdout=output,
                stderr=output,
            )
        wait_for(lambda: "Ctrl-C stops" in self.said or self.process.poll() is not None, seconds=90)
        assert self.process.poll() is None, self.said
        address = re.search(r"http://127\.0\.0\.1:\d+", self.said)
        assert address, self.said
        self.url = address[0]

    @property
    def said(self) -> str:
        """What `serve` has printed."""
        return self._output.read_text()

    def client(self, key: str = KEY) -> OpenAI:
        """Return an unmodified SDK client."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, timeout=60)

    def pids(self, part: str) -> list[int]:
        """Return the processes whose command line names a part, such as `worker.engine`."""
        found = []
        for pid in descendants(self.process.pid):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if part.encode() in command or (command[0].endswith(part.encode())):
                found.append(pid)
        return found

    def stop(self) -> None:
        """Press Ctrl-C, and see that nothing is left."""
        everything = descendants(self.process.pid)
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(40) == 0, self.said
        assert not [pid for pid in everything if is_alive(pid)]


def start_system(
    kind: str, folder: Path, request: pytest.FixtureRequest, **settings: str
) -> Iterator[System]:
    """Start a system over embedded parts, or over PostgreSQL and Redis by URL."""
    # Weights this large give a random network room to learn an answer by heart.
    base = make_tiny_base(folder / "base", initializer_range=0.5)
    if kind == "embedded":
        system = System(folder, base=base, environment=settings)
        yield system
        system.stop()
        return
    redis_url = request.getfixturevalue("redis_url")
    for database_url in fresh_postgres(request.getfixturevalue("postgres_url")):
        urls = {"GRAFTWORK_DATABASE_URL": database_url, "GRAFTWORK_BROKER_URL": redis_url}
        environment = {**urls, **settings}
        system = System(folder, base=base, environment=environment)
        yield system
        system.stop()


@pytest.fixture(scope="session", params=["embedded", "servers"])
def system(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    """A system that tests share; they must leave it running."""
    yield from start_system(request.param, tmp_path_factory.mktemp("system"), request)


@pytest.fixture
def client(system: System) -> Iterator[OpenAI]:
    """The SDK, pointed at the system."""
    with system.client() as made:
        yield made


def chat_rows(pairs: dict[str, str], *, times: int = 1) -> bytes:
    """Return chat rows that teach an answer to each question."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        }
        for _ in range(times)
        for question, answer in pairs.items()
    ]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def upload(client: OpenAI, rows: bytes, name: str = "rows.jsonl") -> str:
    """Upload rows and return the file's id."""
    return client.files.create(file=(name, io.BytesIO(rows)), purpose="fine-tune").id


def train(client: OpenAI, rows: bytes, **extra: Any) -> FineTuningJob:
    """Post a job on rows and return it as soon as it is there."""
    body = extra.pop("extra_body", {"peft": {"type": "lora", "rank": 8}})
    return client.fine_tuning.jobs.create(
        model="tiny", training_file=upload(client, rows), extra_body=body, **extra
    )


def wait_for_end(client: OpenAI, job_id: str, *, seconds: float = 90) -> FineTuningJob:
    """Poll a job until it has ended."""
    last: list[FineTuningJob] = []

    def ended() -> bool:
        last[:] = [client.fine_tuning.jobs.retrieve(job_id)]
        return last[0].status in ENDED

    wait_for(ended, seconds=seconds)
    return last[0]
