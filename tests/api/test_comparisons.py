"""Comparisons as people post and see them; what a worker finds is in tests/worker/compare."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from core.store import Store
from models.nn.methods import METHODS
from models.tables import comparison, comparison_claims, job
from models.tables.comparison import Comparison
from tests.api.conftest import Stack, tenant_of

PATH = "/v1/fine_tuning/comparisons"


def post(http: httpx.Client, file: str, **values: Any) -> httpx.Response:
    headers = values.pop("headers", {})
    body = {"training_file": file, "validation_file": file, **values}
    return http.post(PATH, json=body, headers=headers)


def created(http: httpx.Client, file: str, **values: Any) -> dict[str, Any]:
    answer = post(http, file, **values)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_each_method_is_a_job_on_equal_terms(
    http: httpx.Client, client: OpenAI, training_file: str
) -> None:
    made = created(
        http,
        training_file,
        methods=[{"type": "lora", "rank": 2}, {"type": "lora"}, {"type": "lora", "rank": 2}],
        budget={"tokens": 500},
        training={"batch_size": 2, "scheduler": "cosine"},
        seed=5,
        suffix="mine",
        metadata={"team": "a"},
    )
    assert made["object"] == "fine_tuning.comparison"
    assert (made["status"], made["model"], made["seed"]) == ("training", "tiny", 5)
    assert (made["budget"], made["metric"]) == ({"tokens": 500}, "auto")
    rows = made["result"]["rows"]
    assert [row["label"] for row in rows] == ["base", "lora rank=2", "lora", "lora rank=2 (2)"]
    assert [row["job"] for row in rows[1:]] == made["jobs"]
    jobs = [client.fine_tuning.jobs.retrieve(name) for name in made["jobs"]]
    assert [one.model_extra["peft"]["rank"] for one in jobs] == [2, 16, 2]
    assert {one.seed for one in jobs} == {5}
    assert {one.hyperparameters.batch_size for one in jobs} == {2}
    assert jobs[0].model_extra["user_provided_suffix"] == "mine-lora-rank-2"
    assert jobs[0].metadata == {"team": "a"}
    loop = jobs[0].model_extra["graftwork"]["training"]
    assert (loop["max_tokens"], loop["scheduler"]) == (500, "cosine")
    shown = http.get(f"{PATH}/{made['id']}").json()
    assert shown == made
    listed = http.get(PATH).json()
    assert [item["id"] for item in listed["data"]] == [made["id"]]


def test_all_is_every_kind_with_its_defaults(http: httpx.Client, training_file: str) -> None:
    made = created(http, training_file, budget={"seconds": 30})
    assert [row["label"] for row in made["result"]["rows"]] == ["base", *METHODS]


@pytest.mark.parametrize(
    ("values", "param", "code"),
    [
        ({"budget": {"tokens": 1, "seconds": 1}}, "budget", "invalid_value"),
        ({"budget": {}}, "budget", "invalid_value"),
        ({"budget": {"tokens": True}}, "budget.tokens", "invalid_value"),
        ({"methods": []}, "methods", "invalid_value"),
        ({"methods": [{"type": "lora"}, {"type": "magic"}]}, "methods.1.type", "unknown_method"),
        ({"methods": [{"rank": 2}]}, "methods.0.type", "unknown_method"),
        ({"methods": [{"type": "lora", "rank": True}]}, "methods.0.rank", "invalid_value"),
        ({"methods": [{"type": "lora", "rank": "8"}]}, "methods.0.rank", "invalid_value"),
        ({"budget": {"seconds": "9"}}, "budget.seconds", "invalid_value"),
        ({"methods": [{"type": "lora", "rank": 0}]}, "methods.0.rank", "invalid_value"),
        (
            {"methods": [{"type": "lora", "target_modules": ["nowhere"]}]},
            "methods.0.target_modules",
            None,
        ),
        ({"training": {"n_epochs": 3}}, "training.n_epochs", "unknown_parameter"),
        ({"metric": "perplexity"}, "metric", "invalid_value"),
        ({"model": "nobody"}, "model", "model_not_found"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_job(
    http: httpx.Client, training_file: str, values: dict[str, Any], param: str, code: str | None
) -> None:
    answer = post(http, training_file, **values)
    assert answer.status_code in (400, 404), answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert code in (None, error["code"])
    assert http.get("/v1/fine_tuning/jobs").json()["data"] == []


@pytest.mark.parametrize("begin", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_rows_without_answers_are_refused(
    http: httpx.Client, client: OpenAI, training_file: str, begin: bytes
) -> None:
    rows = begin + b'{"text": "a"}\n'
    text = client.files.create(file=("t.jsonl", rows), purpose="fine-tune").id
    answer = post(http, training_file, validation_file=text)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "no_answers"


def test_a_first_row_that_is_nested_too_deeply_is_the_workers_to_refuse(
    http: httpx.Client, client: OpenAI, training_file: str
) -> None:
    deep = b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    file = client.files.create(file=("deep.jsonl", deep), purpose="fine-tune").id
    assert created(http, training_file, validation_file=file)["status"] == "training"


def test_a_key_makes_one_comparison(http: httpx.Client, training_file: str) -> None:
    headers = {"idempotency-key": "once"}
    methods = [{"type": "lora"}]
    first = created(http, training_file, methods=methods, headers=headers, seed=1)
    assert created(http, training_file, methods=methods, headers=headers, seed=1) == first
    other = post(http, training_file, methods=methods, headers=headers, seed=2)
    assert other.json()["error"]["code"] == "idempotency_key_reused"
    assert len(http.get("/v1/fine_tuning/jobs").json()["data"]) == 1


def test_cancelling_ends_its_jobs(http: httpx.Client, client: OpenAI, training_file: str) -> None:
    made = created(http, training_file, methods=[{"type": "lora"}, {"type": "ia3"}])
    client.fine_tuning.jobs.cancel(made["jobs"][0])
    cancelled = http.post(f"{PATH}/{made['id']}/cancel").json()
    assert cancelled["status"] == "cancelled"
    states = {client.fine_tuning.jobs.retrieve(name).status for name in made["jobs"]}
    assert states == {"cancelled"}
    assert {row["status"] for row in cancelled["result"]["rows"]} == {"cancelled"}
    assert http.post(f"{PATH}/{made['id']}/cancel").json() == cancelled


def test_other_tenants_see_nothing(stack: Stack, http: httpx.Client, training_file: str) -> None:
    made = created(http, training_file, methods=[{"type": "lora"}])
    headers = {"authorization": f"Bearer {stack.key()}"}
    with httpx.Client(base_url=stack.url, headers=headers) as other:
        path = f"{PATH}/{made['id']}"
        for answer in (
            other.get(path),
            other.get(f"{path}/plot.svg"),
            other.post(f"{path}/cancel"),
        ):
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "comparison_not_found"
        assert other.get(PATH).json()["data"] == []
        foreign = other.post(
            PATH, json={"training_file": training_file, "validation_file": training_file}
        )
        assert foreign.json()["error"]["code"] == "file_not_found"


def test_plots_come_from_the_store(
    stack: Stack, http: httpx.Client, key: str, training_file: str, tmp_path: Path
) -> None:
    made = created(http, training_file, methods=[{"type": "lora"}])
    early = http.get(f"{PATH}/{made['id']}/plot.svg")
    assert (early.status_code, early.json()["error"]["code"]) == (404, "plot_not_ready")
    row = finish(stack, made["id"], tenant=tenant_of(stack, key), folder=tmp_path)
    picture = http.get(f"{PATH}/{made['id']}/plot.svg?against=compute")
    assert picture.headers["content-type"] == "image/svg+xml"
    assert picture.text == "<svg/>"
    assert http.get(f"{PATH}/{row.id}/plot.png?against=parameters").status_code == 404
    assert http.get(f"{PATH}/{row.id}/plot.png?against=luck").status_code == 400
    shown = http.get(f"{PATH}/{row.id}").json()
    assert (shown["status"], shown["result"]["metric"]) == ("succeeded", "bleu")


def finish(stack: Stack, name: str, *, tenant: str, folder: Path) -> Comparison:
    """End a comparison as a worker does."""
    (folder / "plot.svg").write_text("<svg/>")
    store = Store((stack.data_folder / "store").as_uri())
    digest = store.put_file(folder / "plot.svg")
    with stack.database.unit_of_work() as session:
        row = comparison.get(session, name, tenant=tenant)
        for entry in row.entries:
            job.cancel(session, entry["job"], tenant=tenant)
        taken = comparison_claims.take(session, owner="w", seconds=60, comparison_id=name)
        assert taken is not None
        table = {"metric": "bleu", "rows": [], "pareto": []}
        comparison_claims.finish(
            session,
            taken,
            state="succeeded",
            result=json.loads(json.dumps(table)),
            plots={"compute.svg": digest},
        )
        return taken
