import asyncio
import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI

from core.ids import new_id
from models.loop_request import LoopRequest, resolve
from models.nn.methods import parse_method
from models.tables import event, job
from models.tables.checkpoint import Checkpoint
from tests.api.conftest import Stack, add_adapter, tenant_of
from tests.api.jobs import create, refused


def test_a_job_is_shown_as_asked_for(client: OpenAI, training_file: str) -> None:
    made = create(
        client,
        training_file,
        validation_file=training_file,
        suffix="support",
        seed=7,
        metadata={"team": "a"},
        integrations=[],
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        extra_body={"peft": {"type": "lora", "rank": 4}, "training": {"scheduler": "cosine"}},
    )
    assert re.fullmatch(r"ftjob-\w{24}", made.id)
    assert (made.status, made.object, made.model) == ("validating_files", "fine_tuning.job", "tiny")
    assert (made.seed, made.metadata, made.result_files) == (7, {"team": "a"}, [])
    assert (made.error, made.fine_tuned_model, made.finished_at) == (None, None, None)
    assert made.hyperparameters.n_epochs == 2
    assert made.hyperparameters.learning_rate_multiplier == "auto"
    assert made.method.supervised.hyperparameters.batch_size == "auto"
    extra = made.model_extra
    assert extra["peft"]["rank"] == 4
    assert extra["peft"]["target_modules"] == "all-linear"
    assert extra["graftwork"]["training"]["scheduler"] == "cosine"
    assert extra["user_provided_suffix"] == "support"
    assert client.fine_tuning.jobs.retrieve(made.id) == made


def test_lora_and_a_random_seed_are_the_defaults(client: OpenAI, training_file: str) -> None:
    first, second = create(client, training_file), create(client, training_file)
    assert first.model_extra["peft"]["type"] == "lora"
    assert first.seed != second.seed
    assert 0 <= first.seed < 2**31


def test_deprecated_hyperparameters_still_count(client: OpenAI, training_file: str) -> None:
    made = create(client, training_file, hyperparameters={"batch_size": 3})
    assert made.method.supervised.hyperparameters.batch_size == 3
    empty = {"type": "supervised", "supervised": {}}
    made = create(client, training_file, method=empty, hyperparameters={"batch_size": 3})
    assert made.method.supervised.hyperparameters.batch_size == 3


def test_auto_may_be_said(client: OpenAI, training_file: str) -> None:
    words = dict.fromkeys(("n_epochs", "batch_size", "learning_rate_multiplier"), "auto")
    made = create(
        client,
        training_file,
        method={"type": "supervised", "supervised": {"hyperparameters": words}},
    )
    assert made.hyperparameters.n_epochs == "auto"


def test_the_same_key_is_the_same_job(client: OpenAI, training_file: str) -> None:
    headers = {"Idempotency-Key": new_id("key")}
    first = create(client, training_file, extra_headers=headers)
    assert create(client, training_file, extra_headers=headers).id == first.id
    error = refused(client, training_file, seed=1, extra_headers=headers)
    assert (error.status_code, error.code) == (400, "idempotency_key_reused")
    client.files.delete(training_file)
    assert create(client, training_file, extra_headers=headers).id == first.id
    assert refused(client, training_file, extra_headers={"Idempotency-Key": "x" * 256}).code


def test_keys_of_tenants_do_not_meet(stack: Stack, client: OpenAI, training_file: str) -> None:
    headers = {"Idempotency-Key": "shared"}
    mine = create(client, training_file, extra_headers=headers)
    with OpenAI(base_url=f"{stack.url}/v1", api_key=stack.key(), max_retries=0) as other:
        file = other.files.create(file=("a.jsonl", b"{}"), purpose="fine-tune").id
        assert create(other, file, extra_headers=headers).id != mine.id


def test_fifty_at_once_make_one_job(http: httpx.Client, training_file: str) -> None:
    body = {"model": "tiny", "training_file": training_file}
    headers = {"Idempotency-Key": "race"}

    def post(_: int) -> str:
        response = http.post("/v1/fine_tuning/jobs", json=body, headers=headers)
        assert response.status_code == 200, response.text
        return response.json()["id"]

    with ThreadPoolExecutor(50) as threads:
        assert len(set(threads.map(post, range(50)))) == 1
    assert len(http.get("/v1/fine_tuning/jobs").json()["data"]) == 1


def test_pages_follow_the_cursor_and_metadata_filters(client: OpenAI, training_file: str) -> None:
    labels = [{"a": "1"}, None, {"a": "1", "b": "2"}, {"a": "2"}]
    ids = [create(client, training_file, metadata=label).id for label in labels]
    jobs = client.fine_tuning.jobs
    assert [item.id for item in jobs.list(limit=1)] == ids[::-1]
    assert [item.id for item in jobs.list(metadata={"a": "1"})] == [ids[2], ids[0]]
    assert [item.id for item in jobs.list(metadata={"a": "1", "b": "2"})] == [ids[2]]
    assert [item.id for item in jobs.list(extra_query={"metadata": "null"})] == [ids[1]]
    assert [item.id for item in jobs.list(metadata={'"]} OR 1': "1"})] == []
    for query in ({"metadata": "a"}, {"metadata": "null", "metadata[a]": "1"}):
        with pytest.raises(BadRequestError) as refused:  # it listed every job
            jobs.list(extra_query=query)
        assert refused.value.param == "metadata"
    with pytest.raises(BadRequestError, match="each key once"):
        client.get("/fine_tuning/jobs?metadata[a]=1&metadata[a]=2", cast_to=object)
    assert jobs.list(after=ids[0]).data == []


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "x", "9" * 40])
def test_a_limit_has_bounds(http: httpx.Client, limit: str) -> None:
    response = http.get("/v1/fine_tuning/jobs", params={"limit": limit})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "limit"


def test_pause_resume_and_cancel(client: OpenAI, training_file: str) -> None:
    jobs = client.fine_tuning.jobs
    made = create(client, training_file)
    assert jobs.pause(made.id).status == "paused"
    assert jobs.resume(made.id).status == "validating_files"
    assert jobs.resume(made.id).status == "validating_files"
    ended = jobs.cancel(made.id)
    assert ended.status == "cancelled"
    assert ended.finished_at
    assert jobs.cancel(made.id).status == "cancelled"
    for act in (jobs.pause, jobs.resume):
        with pytest.raises(BadRequestError) as error:
            act(made.id)
        assert error.value.code == "invalid_job_state"
        assert error.value.response.headers["x-should-retry"] == "false"


def test_events_and_checkpoints_are_listed(
    stack: Stack, client: OpenAI, key: str, training_file: str
) -> None:
    made = create(client, training_file)
    name = f"ft:tiny:x::abc:{new_id('ckpt')}:ckpt-step-5"
    tenant = tenant_of(stack, key)
    with stack.database.unit_of_work() as session:
        event.add(session, made.id, message="Step 1", type="metrics", data={"train_loss": 0.5})
        session.add(
            Checkpoint(
                id=new_id("ftckpt"),
                job_id=made.id,
                tenant=tenant,
                name=name,
                step=5,
                digest="c" * 64,
                metrics={"train_loss": 0.5, "full_valid_loss": 0.25},
            )
        )
    events = list(client.fine_tuning.jobs.list_events(made.id, limit=1))
    assert [item.type for item in events] == ["metrics", "message"]
    assert events[0].data == {"train_loss": 0.5}
    (found,) = client.fine_tuning.jobs.checkpoints.list(made.id)
    assert (found.step_number, found.fine_tuned_model_checkpoint) == (5, name)
    assert (found.metrics.step, found.metrics.full_valid_loss) == (5, 0.25)
    assert client.models.retrieve(name).model_extra["graftwork"]["kind"] == "checkpoint"


@pytest.mark.parametrize("end", ["max_tokens", "max_seconds"])
def test_another_end_than_epochs_may_be_posted_as_it_is_shown(
    stack: Stack, client: OpenAI, training_file: str, end: str
) -> None:
    made = create(client, training_file, extra_body={"training": {end: 1000}})
    with stack.database.unit_of_work() as session:
        row = session.query(job.Job).filter_by(id=made.id).one()
        resolved = resolve(LoopRequest(**row.loop), method=parse_method(row.method), rows=10)
        row.resolved = resolved.model_dump(mode="json")
    shown = client.fine_tuning.jobs.retrieve(made.id)
    assert shown.hyperparameters.n_epochs == "auto"
    assert shown.hyperparameters.batch_size == 1
    again = create(
        client,
        training_file,
        hyperparameters=shown.hyperparameters.to_dict(),
        extra_body={"training": shown.model_extra["graftwork"]["training"]},
    )
    assert again.model_extra["graftwork"]["training"][end] == 1000


def test_resolved_values_and_errors_come_back(
    stack: Stack, client: OpenAI, training_file: str
) -> None:
    made = create(client, training_file)
    loop = {"n_epochs": 3, "batch_size": 4, "learning_rate": 1e-3, "scheduler": "linear"}
    with stack.database.unit_of_work() as session:
        row = session.query(job.Job).filter_by(id=made.id).one()
        row.resolved, row.report, row.state = loop, {"rows": 9, "kept": 8, "dropped": 1}, "running"
        row.step, row.total_steps, row.trained_tokens = 2, 6, 100
        row.estimated_finish = row.created_at + 500
    shown = client.fine_tuning.jobs.retrieve(made.id)
    assert shown.hyperparameters.n_epochs == 3
    assert shown.hyperparameters.learning_rate_multiplier == 1.0
    own = shown.model_extra["graftwork"]
    assert own["data"] == {"rows": 9, "kept": 8, "dropped": 1}
    assert (own["step"], own["total_steps"]) == (2, 6)
    assert 0 < own["eta_seconds"] <= 500
    problem = {"line": 3, "code": "invalid_json", "message": "No.", "param": None}
    with stack.database.unit_of_work() as session:
        row = session.query(job.Job).filter_by(id=made.id).one()
        row.state = "failed"
        row.error = {"code": "invalid_training_file", "message": "Bad.", "problems": [problem]}
    shown = client.fine_tuning.jobs.retrieve(made.id)
    assert (shown.status, shown.error.code, shown.error.param) == (
        "failed",
        "invalid_training_file",
        None,
    )
    assert shown.model_extra["graftwork"]["problems"] == [problem]


def test_going_on_from_an_adapter(
    stack: Stack, client: OpenAI, key: str, training_file: str
) -> None:
    tenant = tenant_of(stack, key)
    with stack.database.unit_of_work() as session:
        parent = add_adapter(session, tenant)
        elsewhere = add_adapter(session, tenant, base="big")
    made = create(client, training_file, model=parent.name)
    assert (made.model, made.model_extra["peft"]["rank"]) == (parent.name, 2)
    assert made.model_extra["graftwork"]["base"] == "tiny"
    softer = {"type": "lora", "rank": 2, "alpha": 4, "dropout": 0.5}
    assert create(client, training_file, model=parent.name, extra_body={"peft": softer}).id
    for block in ({"type": "ia3"}, {"type": "lora", "rank": 3}):
        error = refused(client, training_file, model=parent.name, extra_body={"peft": block})
        assert (error.status_code, error.code) == (400, "incompatible_parent")
    assert refused(client, training_file, model=elsewhere.name).code == "base_not_served"


def test_another_tenants_job_reads_like_a_missing_one(
    stack: Stack, client: OpenAI, training_file: str
) -> None:
    made = create(client, training_file)
    with OpenAI(base_url=f"{stack.url}/v1", api_key=stack.key(), max_retries=0) as other:
        jobs = other.fine_tuning.jobs
        for act in (
            jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events,
            jobs.checkpoints.list,
        ):  # fmt: skip
            with pytest.raises(NotFoundError) as foreign:
                act(made.id)
            with pytest.raises(NotFoundError) as missing:
                act("ftjob-missing")
            assert foreign.value.message.replace(made.id, "ftjob-missing") == missing.value.message
        assert jobs.list().data == []
        error = refused(other, training_file)
        assert (error.status_code, error.code) == (404, "file_not_found")


def test_the_async_client_does_the_same(stack: Stack, key: str, training_file: str) -> None:
    async def run() -> None:
        async with AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=key) as client:
            made = await client.fine_tuning.jobs.create(model="tiny", training_file=training_file)
            listed = [item.id async for item in client.fine_tuning.jobs.list(limit=1)]
            assert listed == [made.id]
            assert (await client.fine_tuning.jobs.cancel(made.id)).status == "cancelled"

    asyncio.run(run())
