import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from models.tables import api_key
from tests.api.conftest import Stack, free_port, wait_for


def test_a_whole_installation_is_ready(stack: Stack) -> None:
    response = httpx.get(f"{stack.url}/readyz", timeout=30)
    assert response.status_code == 200, response.text
    checks = response.json()["checks"]
    assert set(checks) == {"database", "migrations", "store", "broker", "engine", "base"}
    assert all(check["ok"] for check in checks.values())
    assert httpx.get(f"{stack.url}/health").json() == {"status": "ok"}


def test_an_engine_that_loads_makes_it_unready(stack: Stack) -> None:
    stack.engine.ready = False
    try:
        response = httpx.get(f"{stack.url}/readyz", timeout=30)
    finally:
        stack.engine.ready = True
    assert response.status_code == 503
    engine = response.json()["checks"]["engine"]
    assert (engine["ok"], engine["detail"]) == (False, "The engine is not ready yet.")
    assert httpx.get(f"{stack.url}/livez").status_code == 200


def test_who_reads_waits_for_no_writer(
    stack: Stack, http: httpx.Client, training_file: str
) -> None:
    body = {"model": "tiny", "training_file": training_file}
    job = http.post("/v1/fine_tuning/jobs", json=body).json()["id"]
    paths = [
        *("/v1/models", "/v1/models/tiny", "/v1/files", f"/v1/files/{training_file}"),
        *(f"/v1/files/{training_file}/content", "/v1/fine_tuning/jobs", "/metrics"),
        *(f"/v1/fine_tuning/jobs/{job}{part}" for part in ("", "/events", "/checkpoints")),
        "/v1/fine_tuning/comparisons",
    ]
    with stack.database.unit_of_work() as session:
        api_key.create(session, tenant="busy", name="not committed")
        found = {path: http.get(path).status_code for path in paths}
    assert found == dict.fromkeys(paths, 200)


def test_metrics_count_by_template(stack: Stack, http: httpx.Client, training_file: str) -> None:
    http.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": training_file})
    http.get("/v1/files/some-id")
    http.get("/v1/made-up")
    text = httpx.get(f"{stack.url}/metrics").text
    assert "graftwork_up 1.0" in text
    assert 'route="/v1/files/{file_id}",status="404"' in text
    assert 'graftwork_jobs{state="validating_files"}' in text
    assert "some-id" not in text
    assert "made-up" not in text


def test_alone_it_lives_says_what_is_missing_and_refuses_politely(tmp_path: Path) -> None:
    port = free_port()
    environment = {
        "GRAFTWORK_DATA_DIR": str(tmp_path),
        "GRAFTWORK_PORT": str(port),
        "GRAFTWORK_BASE": "tiny",
        "GRAFTWORK_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "GRAFTWORK_BROKER_URL": "redis://127.0.0.1:1/0",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "api"],
        env={**os.environ, **environment},
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address)
        ready = httpx.get(f"{address}/readyz", timeout=30)
        assert ready.status_code == 503
        failed = {name for name, check in ready.json()["checks"].items() if not check["ok"]}
        assert failed == {"database", "migrations", "broker", "engine", "base"}
        assert ready.json()["checks"]["broker"]["required"] is False
        headers = {"authorization": "Bearer x"}
        refused = httpx.get(f"{address}/v1/models", headers=headers, timeout=30)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "database_unavailable"
        assert refused.headers["retry-after"] == "2"
        assert httpx.get(f"{address}/metrics").status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM)
