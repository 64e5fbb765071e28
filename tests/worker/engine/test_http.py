"""The engine as a process: its socket, its lines, its signals."""

import asyncio
import base64
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.store import MANIFEST
from tests.worker.engine.conftest import BASE, World
from worker.engine.app import create_app
from worker.engine.engine import Engine

PROMPT = list(range(10, 30))


@contextmanager
def engine_process(data: Path, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {
        **os.environ,
        "GRAFTWORK_DATA_DIR": str(data),
        "GRAFTWORK_BASE": BASE,
        "GRAFTWORK_ENGINE__COMPUTE__DTYPE": "float32",
        "GRAFTWORK_ENGINE__COMPUTE__THREADS": "1",
        **settings,
    }
    process = subprocess.Popen([sys.executable, "-m", "worker.engine"], env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def client(world: World) -> Iterator[httpx.Client]:
    limits = {
        "GRAFTWORK_ENGINE__ROWS": "2",
        "GRAFTWORK_ENGINE__WAITING": "1",
        "GRAFTWORK_ENGINE__CONTEXT": "512",
    }
    with engine_process(world.settings.data_folder, **limits) as process:
        socket = Path(world.settings.engine_address.removeprefix("unix:"))
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://engine", timeout=30
        ) as client:
            wait_until_ready(client, process, socket)
            yield client


def wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes], socket: Path) -> None:
    deadline = time.monotonic() + 60
    while not socket.exists() or client.get("/health").status_code != 200:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def body(**more: Any) -> dict[str, Any]:
    sampling = {"temperature": 0, "max_tokens": 4, "ignore_eos": True, **more.pop("sampling", {})}
    return {"prompt_ids": PROMPT, "sampling": sampling, **more}


def lines_of(response: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in response.text.splitlines()]


def wait_for_rows(client: httpx.Client, rows: int) -> None:
    deadline = time.monotonic() + 20
    while client.get("/health").json()["rows"] != rows:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_socket_is_private(world: World, client: httpx.Client) -> None:
    socket = Path(world.settings.engine_address.removeprefix("unix:"))
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700


def test_lines_are_streamed(world: World, client: httpx.Client) -> None:
    adapter = {"name": "mine", "digest": world.adapters[0].digest}
    response = client.post("/generate", json=body(adapter=adapter, sampling={"logprobs": True}))
    assert response.headers["content-type"].startswith("application/x-ndjson")
    opened, start, *deltas, end = lines_of(response)
    assert opened == {"type": "opened"}
    assert start == {"type": "start", "prompt_tokens": 20}
    assert end == {
        "type": "end",
        "prompt_tokens": 20,
        "completion_tokens": 4,
        "cached_tokens": 0,
        "accepted_tokens": 0,
        "rejected_tokens": 0,
    }
    assert {delta["type"] for delta in deltas} == {"delta"}
    assert sum(len(delta["tokens"]) for delta in deltas) == 4
    assert deltas[-1]["finish_reason"] == "length"
    resident = client.get("/health").json()["resident"]
    assert [entry["digest"] for entry in resident] == [adapter["digest"]]
    assert (resident[0]["kind"], resident[0]["prefix_rows"]) == ("lora", 0)
    assert client.delete(f"/adapters/{adapter['digest']}").status_code == 204
    time.sleep(0.1)
    assert client.get("/health").json()["resident"] == []


def test_vectors_and_scores_are_bytes_and_numbers(world: World, client: httpx.Client) -> None:
    inputs = [{"text": "Hello"}, {"ids": PROMPT}]
    embedded = client.post("/embed", json={"inputs": inputs, "pooling": "last"}).json()
    assert [len(base64.b64decode(vector)) for vector in embedded["vectors"]] == [4 * 32] * 2
    assert embedded["tokens"] == [5, 20]
    labels = {"labels": ["yes", "no"], "inputs": inputs}
    adapter = {"name": "mine", "digest": world.adapters[0].digest}
    for body_ in (labels, {**labels, "adapter": adapter}):
        scored = client.post("/classify", json=body_).json()
        assert scored["labels"] == ["yes", "no"]
        assert [sum(scores) for scores in scored["scores"]] == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(
    ("path", "body_", "code", "param"),
    [
        ("/embed", {"inputs": [{"text": ""}]}, "invalid_prompt", "inputs[0]"),
        ("/embed", {"inputs": "text"}, "invalid_request", None),
        ("/classify", {"inputs": [{"text": "a"}]}, "labels_required", "labels"),
    ],
)
def test_what_cannot_be_read_has_a_status(
    client: httpx.Client, path: str, body_: dict[str, Any], code: str, param: str | None
) -> None:
    response = client.post(path, json=body_)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param)


def test_a_reader_who_leaves_frees_the_rows(client: httpx.Client) -> None:
    many = {"inputs": [{"ids": PROMPT * 20}] * 200}
    with pytest.raises(httpx.ReadTimeout):
        client.post("/embed", json=many, timeout=0.2)
    wait_for_rows(client, 0)


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"sampling": {"max_tokens": 5000}}, 400, "context_length_exceeded"),
        ({"sampling": {"n": 0}}, 400, "invalid_request"),
        ({"prompt": 3}, 400, "invalid_request"),
        ({"adapter": {"name": "gone", "digest": "0" * 64}}, 404, "adapter_not_found"),
        ({"sampling": {"n": 9}}, 400, "invalid_value"),
    ],
)
def test_an_error_before_the_first_line_has_a_status(
    client: httpx.Client, change: dict[str, Any], status: int, code: str
) -> None:
    response = client.post("/generate", json=body(**change))
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"code", "message", "param"}
    assert error["code"] == code


def test_a_caller_who_leaves_frees_the_rows(client: httpx.Client) -> None:
    with client.stream("POST", "/generate", json=body(sampling={"max_tokens": None})) as response:
        stream = response.iter_lines()
        next(stream)
        wait_for_rows(client, 1)
    wait_for_rows(client, 0)


def test_a_caller_who_leaves_before_the_first_line_frees_its_place(client: httpx.Client) -> None:
    long = body(sampling={"max_tokens": None, "n": 2})
    with client.stream("POST", "/generate", json=long) as running:
        stream = running.iter_lines()
        next(stream)
        with pytest.raises(httpx.ReadTimeout):
            client.post("/generate", json=body(), timeout=0.05)
        deadline = time.monotonic() + 20
        while client.get("/health").json()["waiting"]:
            assert time.monotonic() < deadline
    wait_for_rows(client, 0)


@pytest.mark.parametrize("path", ["/generate", "/embed", "/classify", "/inspect"])
def test_a_caller_who_leaves_amid_the_body_is_no_fault(world: World, path: str) -> None:
    received = iter([{"type": "http.request", "body": b"{", "more_body": True}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(received, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
    asyncio.run(create_app(Engine(world.settings))(scope, receive, send))
    assert sent[0]["status"] == 499


def test_metrics_count(client: httpx.Client) -> None:
    client.post("/generate", json=body())
    text = client.get("/metrics").text
    for name in (
        "rows 0.0",
        "waiting 0.0",
        'tokens_total{kind="completion"}',
        'tokens_total{kind="prompt"}',
        "step_seconds_bucket",
        "adapters_bytes",
        "adapter_loads_total",
    ):
        assert f"graftwork_engine_{name}" in text


def test_being_told_to_stop_ends_requests_soon_and_the_process_cleanly(
    world: World, tmp_path: Path
) -> None:
    (tmp_path / "bases").symlink_to(world.settings.data_folder / "bases")
    settings = world.settings.model_copy(update={"data_dir": tmp_path})
    socket = Path(settings.engine_address.removeprefix("unix:"))
    slow = {"GRAFTWORK_ENGINE__CONTEXT": "512", "GRAFTWORK_ENGINE__PREFILL_TOKENS": "1"}
    with (
        engine_process(tmp_path, **slow) as process,
        httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://engine", timeout=30
        ) as client,
    ):
        wait_until_ready(client, process, socket)
        endless = body(sampling={"max_tokens": None, "n": 16})
        with client.stream("POST", "/generate", json=endless) as response:
            stream = response.iter_lines()
            next(stream)
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            last = json.loads([*stream][-1])
        assert time.monotonic() - began < 5
        assert process.wait(20) == 0
        assert last["type"] == "end" or last["code"] == "engine_stopping"
        assert not socket.exists()


def test_a_process_that_is_told_to_stop_does_not_wait_for_a_store_that_hangs(
    world: World, tmp_path: Path
) -> None:
    (tmp_path / "bases").symlink_to(world.settings.data_folder / "bases")
    settings = world.settings.model_copy(update={"data_dir": tmp_path})
    socket = Path(settings.engine_address.removeprefix("unix:"))
    digest = "0" * 64
    tree = settings.data_folder / "store" / "trees" / digest
    tree.mkdir(parents=True)
    os.mkfifo(tree / MANIFEST)  # nobody ever writes to it
    with (
        engine_process(tmp_path) as process,
        httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://engine", timeout=30
        ) as client,
    ):
        wait_until_ready(client, process, socket)
        asked = body(adapter={"name": "stuck", "digest": digest})
        with pytest.raises(httpx.ReadTimeout):
            client.post("/generate", json=asked, timeout=1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_without_its_base_the_process_fails(tmp_path: Path) -> None:
    with engine_process(tmp_path) as process:
        assert process.wait(60) == 1
