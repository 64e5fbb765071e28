"""Upload, post, poll, call: what the README promises, through the unmodified SDK."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, NotFoundError, OpenAI

from tests.e2e.conftest import KEY, System, chat_rows, train, upload, wait_for_end

ROOT = Path(__file__).parents[2]
README = {"http://127.0.0.1:8000": "{url}", "smollm2-135m-instruct": "tiny", "gw-...": KEY}
"""What the README's code says, and what it would say here."""

# Enough for a tiny random network to learn one answer by heart.
BY_HEART = {"n_epochs": 40, "batch_size": 1, "learning_rate_multiplier": 5}


def learn(client: OpenAI, pairs: dict[str, str], *, suffix: str, kind: str = "lora") -> str:
    peft = {"type": "lora", "rank": 8} if kind == "lora" else {"type": kind}
    job = train(
        client,
        chat_rows(pairs),
        suffix=suffix,
        seed=3,
        method={"type": "supervised", "supervised": {"hyperparameters": BY_HEART}},
        extra_body={"peft": peft, "training": {"scheduler": "constant"}},
    )
    ended = wait_for_end(client, job.id)
    assert ended.status == "succeeded", ended.error
    assert ended.fine_tuned_model
    return ended.fine_tuned_model


def test_the_code_in_the_readme_runs_as_it_stands_there(
    system: System, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    for theirs, ours in README.items():
        assert code.count(theirs) == 1
        code = code.replace(theirs, ours.format(url=system.url))
    monkeypatch.chdir(ROOT)
    found: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), found)
    assert found["answer"].model == found["job"].fine_tuned_model
    assert capsys.readouterr().out.strip() == found["answer"].choices[0].message.content.strip()
    rows = (ROOT / "examples/support_mail/train.jsonl").read_text().splitlines()
    assert all(json.loads(row)["messages"][0] == found["task"] for row in rows)


def ask(client: OpenAI, model: str, question: str = "colour?") -> str:
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=12,
    )
    return answer.choices[0].message.content or ""


@pytest.fixture(scope="module")
def models(system: System) -> dict[str, str]:
    """Two adapters that learnt different answers to one question."""
    with system.client() as client:
        return {
            "red": learn(client, {"colour?": "red"}, suffix="red"),
            "blue": learn(client, {"colour?": "blue"}, suffix="blue"),
        }


def test_the_adapter_answers_what_it_learnt_and_the_base_does_not(
    client: OpenAI, models: dict[str, str]
) -> None:
    assert ask(client, models["red"]) == "red"
    assert ask(client, models["blue"]) == "blue"
    assert ask(client, "tiny") not in ("red", "blue")


def test_each_of_64_answers_at_once_comes_from_the_right_place(
    client: OpenAI, models: dict[str, str]
) -> None:
    base = ask(client, "tiny")
    wanted = [(models["red"], "red"), (models["blue"], "blue"), ("tiny", base)] * 22
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda item: ask(client, item[0]), wanted[:64]))
    assert answers == [answer for _, answer in wanted[:64]]


def test_streams_are_the_same_text(client: OpenAI, models: dict[str, str]) -> None:
    stream = client.chat.completions.create(
        model=models["red"],
        messages=[{"role": "user", "content": "colour?"}],
        temperature=0,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "red"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    finished = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert finished[-1] == "stop"


def test_the_async_client_works_alike(system: System, models: dict[str, str]) -> None:
    async def ask_all() -> list[str]:
        async with AsyncOpenAI(base_url=f"{system.url}/v1", api_key=KEY) as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model=model,
                        messages=[{"role": "user", "content": "colour?"}],
                        temperature=0,
                        max_tokens=12,
                    )
                    for model in models.values()
                )
            )
            return [answer.choices[0].message.content or "" for answer in answers]

    assert asyncio.run(ask_all()) == ["red", "blue"]


def test_the_job_tells_its_whole_story(client: OpenAI) -> None:
    valid = upload(client, chat_rows({"b?": "no"}), "valid.jsonl")
    job = train(
        client,
        chat_rows({"a?": "yes", "b?": "no"}, times=3),
        suffix="story",
        seed=11,
        metadata={"team": "support"},
        validation_file=valid,
        hyperparameters={"n_epochs": 2, "batch_size": 2, "learning_rate_multiplier": 2},
        extra_body={"peft": {"type": "ia3"}},
    )
    assert job.seed == 11
    assert job.status in ("validating_files", "queued", "running")
    ended = wait_for_end(client, job.id)
    assert ended.status == "succeeded"
    assert ended.hyperparameters.n_epochs == 2
    assert ended.finished_at is not None
    assert ended.trained_tokens
    assert ended.model_extra is not None
    assert ended.model_extra["peft"]["type"] == "ia3"

    events = list(client.fine_tuning.jobs.list_events(job.id, limit=3))
    assert len({event.id for event in events}) == len(events)
    metrics = [event for event in events if event.type == "metrics"]
    assert metrics
    steps = [event.data["step"] for event in reversed(metrics) if "train_loss" in event.data]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert any("full_valid_loss" in event.data for event in metrics)

    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert [item.step_number for item in checkpoints] == [6, 3]
    assert checkpoints[0].metrics.full_valid_loss is not None
    assert isinstance(ask(client, checkpoints[1].fine_tuned_model_checkpoint), str)

    results = client.files.content(ended.result_files[0]).text
    assert results.splitlines()[0].startswith("step,train_loss,train_accuracy,valid_loss")
    assert len(results.splitlines()) == 7

    found = client.fine_tuning.jobs.list(extra_query={"metadata[team]": "support"})
    assert [item.id for item in found] == [job.id]


def test_models_are_listed_retrieved_and_deleted(client: OpenAI) -> None:
    name = learn(client, {"gone?": "soon"}, suffix="short-lived")
    assert name in [model.id for model in client.models.list()]
    assert client.models.retrieve(name).id == name
    assert ask(client, name, "gone?") == "soon"
    assert client.models.delete(name).deleted
    assert name not in [model.id for model in client.models.list()]
    with pytest.raises(NotFoundError) as refused:
        ask(client, name)
    assert refused.value.code == "model_not_found"


def test_training_goes_on_from_an_adapter(client: OpenAI, models: dict[str, str]) -> None:
    job = client.fine_tuning.jobs.create(
        model=models["red"],
        training_file=upload(client, chat_rows({"colour?": "red"})),
        hyperparameters={"n_epochs": 1, "learning_rate_multiplier": 0.001},
    )
    ended = wait_for_end(client, job.id)
    assert ended.status == "succeeded", ended.error
    assert ended.fine_tuned_model != models["red"]
    assert ask(client, ended.fine_tuned_model or "") == "red"


def test_a_bad_file_fails_the_job_with_its_lines(client: OpenAI) -> None:
    rows = chat_rows({"a?": "b"}) + b"nonsense\n" + b'{"messages": []}\n'
    job = train(client, rows)
    ended = wait_for_end(client, job.id)
    assert ended.status == "failed"
    assert ended.error is not None
    assert ended.error.code == "invalid_training_file"
    assert ended.error.param == "training_file"
    lines = [
        event.data["line"]
        for event in client.fine_tuning.jobs.list_events(job.id)
        if event.level == "error" and event.data and "line" in event.data
    ]
    assert sorted(lines) == [2, 3]
