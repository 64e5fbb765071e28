"""A real api process over a real database of each kind, with a scripted engine beside it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from sqlalchemy.orm import Session

from core.bases import write_manifest
from core.database import Database
from core.ids import new_id, random_letters
from migrations import migrate
from models.nn.shape import Shape
from models.tables import api_key
from models.tables.adapter import Adapter
from tests.api.fake_engine import FakeEngine
from tests.conftest import fresh_postgres

MIB = 1024 * 1024
SHAPE = Shape(
    hidden=8,
    layers=1,
    heads=2,
    kv_heads=1,
    head_dim=4,
    vocab=32,
    context=64,
    tied=True,
    linears={
        "layers.0.self_attn.q_proj": (8, 8),
        "layers.0.self_attn.k_proj": (4, 8),
        "layers.0.self_attn.v_proj": (4, 8),
        "layers.0.self_attn.o_proj": (8, 8),
        "layers.0.mlp.gate_proj": (16, 8),
        "layers.0.mlp.up_proj": (16, 8),
        "layers.0.mlp.down_proj": (8, 16),
        "lm_head": (32, 8),
    },
    norms={
        "layers.0.input_layernorm": 8,
        "layers.0.post_attention_layernorm": 8,
        "norm": 8,
    },
    parameters={"model.embed_tokens.weight": (32, 8), "model.norm.weight": (8,)},
)
CHAT_ROW = b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}\n'


@dataclass
class Stack:
    """What a test needs of a running installation."""

    url: str
    database: Database
    engine: FakeEngine
    data_folder: Path
    log: Path
    process: int

    def key(self, tenant: str | None = None) -> str:
        """Make a key, of a tenant of its own unless told."""
        tenant = tenant or f"t-{random_letters(8).lower()}"
        with self.database.unit_of_work() as session:
            return api_key.create(session, tenant=tenant, name="test")[1]


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """An installation on each kind of database; the one place that says how it is started."""
    folder = tmp_path_factory.mktemp("api")
    broker_url = request.getfixturevalue("redis_url")
    if request.param == "sqlite":
        url = f"sqlite:///{folder / 'graftwork.db'}"
        migrate(url)
        yield from run_stack(folder, database_url=url, broker_url=broker_url)
        return
    for url in fresh_postgres(request.getfixturevalue("postgres_url")):
        yield from run_stack(folder, database_url=url, broker_url=broker_url)


def run_stack(
    folder: Path, *, database_url: str, broker_url: str, program: Sequence[str] = ("-m", "api")
) -> Iterator[Stack]:
    """Start the api and a scripted engine, and stop both."""
    base = folder / "bases" / "tiny"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    write_manifest(base, id="tiny", shape=SHAPE.model_dump(), renderer_digest="0" * 64)
    engine = FakeEngine(folder / "engine.sock")
    engine.start()
    port = free_port()
    environment = {
        "GRAFTWORK_DATA_DIR": str(folder),
        "GRAFTWORK_DATABASE_URL": database_url,
        "GRAFTWORK_BROKER_URL": broker_url,
        "GRAFTWORK_ENGINE_URL": f"unix:{folder / 'engine.sock'}",
        "GRAFTWORK_BASE": "tiny",
        "GRAFTWORK_PORT": str(port),
        "GRAFTWORK_LIMITS__FILE_BYTES": str(2 * MIB),
        "GRAFTWORK_LIMITS__REQUEST_BYTES": str(MIB),
    }
    log = folder / "api.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *program], env={**os.environ, **environment}, stderr=output
        )
    database = Database(database_url)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address)
        yield Stack(address, database, engine, folder, log, process.pid)
    finally:
        process.terminate()
        process.wait(20)
        engine.stop()
        database.close()
    assert "unexpected error" not in log.read_text()


def free_port() -> int:
    """Return a port that nobody has."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for(address: str) -> None:
    """Wait until a server answers."""
    for _ in range(400):
        try:
            httpx.get(f"{address}/livez")
            return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError(address)


@pytest.fixture
def key(stack: Stack) -> str:
    """The key of a tenant that only this test has."""
    return stack.key()


@pytest.fixture
def client(stack: Stack, key: str) -> Iterator[OpenAI]:
    """The unmodified SDK."""
    with OpenAI(base_url=f"{stack.url}/v1", api_key=key, max_retries=0) as opened:
        yield opened


@pytest.fixture
def http(stack: Stack, key: str) -> Iterator[httpx.Client]:
    """A plain client with the same key, for what the SDK cannot send."""
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=stack.url, headers=headers, timeout=30) as opened:
        yield opened


@pytest.fixture
def training_file(client: OpenAI) -> str:
    """The id of an uploaded training file."""
    return client.files.create(file=("rows.jsonl", CHAT_ROW), purpose="fine-tune").id


def tenant_of(stack: Stack, key: str) -> str:
    """Return whose key it is."""
    with stack.database.unit_of_work() as session:
        found = api_key.find_by_secret(session, key)
        assert found
        return found.tenant


def add_adapter(session: Session, tenant: str, **values: object) -> Adapter:
    """Publish an adapter, as a worker does."""
    defaults = {
        "name": f"ft:tiny:{tenant}::{random_letters(8)}",
        "tenant": tenant,
        "base": "tiny",
        "method": {
            "type": "lora", "rank": 2, "alpha": 4.0, "dropout": 0.0,
            "target_modules": "all-linear", "use_rslora": False,
        },
        "digest": new_id("").strip("-").lower().ljust(64, "0"),
        "bytes": 10,
        "parameters": 5,
    }  # fmt: skip
    row = Adapter(**{**defaults, **values})
    session.add(row)
    session.flush()
    return row


def user(text: Any) -> list[dict[str, Any]]:
    """Return the messages of a chat in which only the user has spoken."""
    return [{"role": "user", "content": text}]
