"""Adapters brought in and taken away as zips."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from openai import NotFoundError, OpenAI
from safetensors.numpy import save

from core.store import Store
from models.tables.checkpoint import Checkpoint
from models.wire import InspectReply
from tests.api.conftest import Stack, add_adapter, tenant_of, user
from tests.api.fake_engine import FITS
from tests.api.test_archive import zipped
from tests.factories import make_job

TENSORS = save({"layers.0.mlp.down_proj.lora_A": np.ones((2, 16), np.float32)})
PEFT = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": "Somebody/Tiny"}
FILES = {
    "adapter_config.json": json.dumps(PEFT).encode(),
    "adapter_model.safetensors": TENSORS,
}


@pytest.fixture(autouse=True)
def fits(stack: Stack) -> Iterator[None]:
    """The engine finds no fault unless the test says so."""
    yield
    stack.engine.finding = FITS


@pytest.fixture
def tenant(stack: Stack, key: str) -> str:
    return tenant_of(stack, key)


def post(http: httpx.Client, content: bytes, **fields: str) -> httpx.Response:
    files = {"file": ("my adapter.zip", content)}
    return http.post("/v1/adapters", files=files, data=fields)


def trees(stack: Stack) -> set[str]:
    return {path.parent.name for path in (stack.data_folder / "store" / "trees").glob("*/*")}


def held(stack: Stack, digest: str) -> dict[str, str]:
    return Store((stack.data_folder / "store").as_uri()).read_tree(digest)


def test_a_peft_folder_becomes_a_model(
    stack: Stack, http: httpx.Client, client: OpenAI, tenant: str, training_file: str
) -> None:
    content = zipped(
        {f"out/{name}": data for name, data in FILES.items()} | {"out/README.md": b"x"}
    )
    response = post(http, content, suffix="mine")
    made = response.json()
    assert response.status_code == 201, made
    assert made["id"].startswith(f"ft:tiny:{tenant}:mine:")
    own, report = made["graftwork"], made["report"]
    assert own["digest"] == stack.engine.inspected[-1]
    assert set(held(stack, own["digest"])) == set(FILES)
    assert (own["parameters"], own["job"], own["method"]["rank"]) == (100, None, 2)
    assert own["source"] == {
        "filename": "my adapter.zip", "format": "peft", "base_model": "Somebody/Tiny",
    }  # fmt: skip
    assert (report["matched"], report["ignored"]) == (["one", "two"], ["out/README.md"])
    assert (report["problems"], report["warnings"]) == ([], [])

    assert client.models.retrieve(made["id"]).model_extra["graftwork"] == own
    reply = client.chat.completions.create(model=made["id"], messages=user("hi"))
    assert reply.choices[0].message.content == f"[{own['digest'][:4]}] hi"
    job = client.fine_tuning.jobs.create(model=made["id"], training_file=training_file)
    assert job.model_extra["peft"]["rank"] == 2
    assert client.models.delete(made["id"]).deleted
    with pytest.raises(NotFoundError):
        client.models.retrieve(made["id"])


def test_another_base_is_a_warning_where_tensors_fit(http: httpx.Client) -> None:
    config = json.dumps({**PEFT, "base_model_name_or_path": "meta/Big\ud800"}).encode()
    made = post(http, zipped({**FILES, "adapter_config.json": config})).json()
    (warning,) = made["report"]["warnings"]
    assert "meta/Big" in warning
    ours = {"format": 1, "method": {"type": "lora", "rank": 2}}
    export = {**FILES, "adapter_config.json": config, "graftwork.json": json.dumps(ours).encode()}
    made = post(http, zipped(export)).json()
    assert made["report"]["warnings"] == []  # ours names the base by hash, and the engine compares
    assert made["report"]["format"] == "graftwork"


def test_what_does_not_fit_leaves_nothing_behind(
    stack: Stack, http: httpx.Client, client: OpenAI
) -> None:
    before = trees(stack)
    stack.engine.finding = InspectReply(
        method={"type": "lora", "rank": 2},
        matched=["a"],
        mismatched=["b: (2, 3), not (2, 4)"],
        problems=["Tensor 'b' has dimensions (2, 3), not (2, 4)."],
    )
    response = post(http, zipped(FILES))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (
        400, "adapter_mismatch", "file",
    )  # fmt: skip
    assert "Tensor 'b'" in error["message"]
    assert error["report"]["mismatched"] == ["b: (2, 3), not (2, 4)"]
    assert error["report"]["matched"] == ["a"]
    assert trees(stack) == before
    assert [item.id for item in client.models.list()] == ["tiny"]
    assert list((stack.data_folder / "uploads").iterdir()) == []


def test_an_engine_that_is_away_leaves_nothing_behind(stack: Stack, http: httpx.Client) -> None:
    before = trees(stack)
    stack.engine.finding = None
    response = post(http, zipped({**FILES, "adapter_model.safetensors": TENSORS + b" "}))
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_loading"
    assert trees(stack) == before


def test_a_refusal_takes_no_bytes_from_an_adapter_that_has_the_same(
    stack: Stack, http: httpx.Client
) -> None:
    made = post(http, zipped(FILES)).json()
    stack.engine.finding = InspectReply(problems=["No."])
    assert post(http, zipped(FILES)).status_code == 400
    assert held(stack, made["graftwork"]["digest"])


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"no zip at all", "invalid_archive"),
        (zipped({"../adapter_model.safetensors": b"x"}), "invalid_archive"),
        (
            zipped({"adapter_config.json": b"{}", "adapter_model.bin": b"\x80\x04."}),
            "unsafe_format",
        ),
        (zipped({"rows.jsonl": b"{}"}), "invalid_adapter"),
        (zipped({**FILES, "adapter_config.json": b"{"}), "invalid_adapter"),
    ],
)
def test_bad_files_are_refused_before_they_are_stored(
    stack: Stack, http: httpx.Client, content: bytes, code: str
) -> None:
    before, asked = trees(stack), len(stack.engine.inspected)
    response = post(http, content)
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)
    assert "report" not in response.json()["error"]
    assert (trees(stack), len(stack.engine.inspected)) == (before, asked)


def test_bad_fields_are_refused(http: httpx.Client) -> None:
    error = post(http, zipped(FILES), suffix="a:b").json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "suffix")
    error = post(http, zipped(FILES), name="x").json()["error"]
    assert (error["code"], error["param"]) == ("unknown_parameter", "name")


def download(http: httpx.Client, name: str) -> httpx.Response:
    return http.get(f"/v1/adapters/{name}/download")


def files_of(response: httpx.Response) -> dict[str, bytes]:
    assert response.status_code == 200, response.text
    with zipfile.ZipFile(io.BytesIO(response.content)) as opened:
        assert opened.testzip() is None
        return {name: opened.read(name) for name in opened.namelist()}


def test_an_export_is_stable_and_comes_back_as_the_same_adapter(
    stack: Stack, http: httpx.Client
) -> None:
    made = post(http, zipped(FILES)).json()
    response = download(http, made["id"])
    files = files_of(response)
    assert {name: files[name] for name in FILES} == FILES
    assert set(files) == {*FILES, "README.md"}
    assert int(response.headers["content-length"]) == len(response.content)
    assert response.headers["content-disposition"].startswith('attachment; filename="ft-tiny-')
    assert response.headers["content-type"] == "application/zip"
    assert download(http, made["id"]).content == response.content
    again = post(http, response.content).json()
    assert again["id"] != made["id"]
    assert again["graftwork"]["digest"] == made["graftwork"]["digest"]
    assert again["report"]["ignored"] == ["README.md"]


def read_card(files: dict[str, bytes]) -> tuple[dict[str, Any], str]:
    _, front, body = files["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_card_of_a_peft_adapter_shows_how_peft_loads_it(http: httpx.Client) -> None:
    made = post(http, zipped(FILES)).json()
    front, body = read_card(files_of(download(http, made["id"])))
    assert front == {
        "base_model": "tiny", "library_name": "peft", "license": "unknown",
        "tags": ["graftwork", "lora", "peft"],
    }  # fmt: skip
    assert "PeftModel.from_pretrained" in body
    assert '"rank": 2' in body
    assert "| `layers.*.mlp.down_proj.lora_A` | 2 x 16 | F32 | 1 |" in body
    assert made["graftwork"]["digest"] in body


def test_a_checkpoint_of_a_job_says_where_it_comes_from(
    stack: Stack, http: httpx.Client, tenant: str, tmp_path: Path
) -> None:
    provenance = {
        "format": 1, "method": {"type": "lora"}, "base": "tiny", "base_digest": "b" * 64,
        "training_digest": "d" * 64, "seed": 7, "metrics": {"train_loss": 0.25},
    }  # fmt: skip
    (tmp_path / "graftwork.json").write_text(json.dumps(provenance))
    (tmp_path / "adapter_model.safetensors").write_bytes(TENSORS)
    digest = Store((stack.data_folder / "store").as_uri()).put_tree(tmp_path)
    name = f"ft:tiny:{tenant}:x:abc:ckpt-step-3"
    with stack.database.unit_of_work() as session:
        job = make_job(session, tenant=tenant, trained_parameters=12)
        session.add(
            Checkpoint(
                id=f"ftckpt-{job.id}", job_id=job.id, tenant=tenant, name=name, step=3,
                digest=digest, metrics={},
            )
        )  # fmt: skip
    front, body = read_card(files_of(download(http, name)))
    assert front["library_name"] == "graftwork"
    assert "PeftModel" not in body
    for said in ("b" * 64, "d" * 64, "| train_loss | 0.25 |", "graftwork adapters import"):
        assert said in body


def test_foreign_and_missing_names_read_the_same(stack: Stack, http: httpx.Client) -> None:
    with stack.database.unit_of_work() as session:
        foreign = add_adapter(session, "somebody").name
    told = [download(http, name).json() for name in (foreign, "ft:tiny:nobody::abcdefgh")]
    assert {body["error"]["code"] for body in told} == {"model_not_found"}
    assert len({body["error"]["message"].split("'")[2] for body in told}) == 1
    assert download(http, "tiny").json()["error"]["code"] == "not_an_adapter"


def test_bytes_that_are_gone_are_an_error_and_no_empty_zip(
    stack: Stack, http: httpx.Client, tenant: str
) -> None:
    with stack.database.unit_of_work() as session:
        name = add_adapter(session, tenant, digest="e" * 64).name
    assert download(http, name).status_code == 404
