"""Every method as a job, and all of them at once over one base, through the unmodified SDK."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI

from tests.e2e.conftest import System, start_system, upload, wait_for_end

ROWS = {"happy": "good", "glad": "good", "sad": "bad", "angry": "bad"}
QUESTIONS = ("happy", "sad", "so glad")
ROW_BYTES = b"".join(
    b'{"messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "%s"}]}\n'
    % (question.encode(), answer.encode())
    for question, answer in ROWS.items()
)


@pytest.fixture(scope="module")
def own_system(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[System]:
    """A system whose engine computes in float32, in which batches do not change answers."""
    yield from start_system(
        "embedded",
        tmp_path_factory.mktemp("methods"),
        request,
        GRAFTWORK_ENGINE__COMPUTE__DTYPE="float32",
        GRAFTWORK_WORKER__JOBS="2",
    )


@pytest.fixture
def client(own_system: System) -> Iterator[OpenAI]:
    with own_system.client() as made:
        yield made


def get(client: OpenAI, path: str) -> Any:
    return client.get(path, cast_to=object)


@pytest.fixture(scope="module")
def models(own_system: System) -> dict[str, str]:
    """One tuned model of every kind that the installation offers, by kind."""
    with own_system.client() as client:
        file = upload(client, ROW_BYTES * 3)
        jobs = {
            card["id"]: client.fine_tuning.jobs.create(
                model="tiny",
                training_file=file,
                validation_file=file,
                seed=3,
                method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
                extra_body={"peft": {"type": card["id"]}},
            ).id
            for card in get(client, "/methods")["data"]
        }
        ended = {kind: wait_for_end(client, job, seconds=400) for kind, job in jobs.items()}
    failed = {kind: job.error for kind, job in ended.items() if job.status != "succeeded"}
    assert not failed
    return {kind: str(job.fine_tuned_model) for kind, job in ended.items()}


def is_generative(client: OpenAI, kind: str) -> bool:
    cards = {card["id"]: card for card in get(client, "/methods")["data"]}
    return bool(cards[kind]["objective"] == "generation")


def ask(client: OpenAI, model: str, question: str) -> str:
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=8,
    )
    return answer.choices[0].message.content or ""


def test_all_kinds_and_the_base_at_once_answer_as_each_alone(
    client: OpenAI, models: dict[str, str]
) -> None:
    generative = [models[kind] for kind in models if is_generative(client, kind)]
    calls = [(model, question) for model in ["tiny", *generative] for question in QUESTIONS]
    alone = {call: ask(client, *call) for call in calls}
    with ThreadPoolExecutor(len(calls)) as pool:
        together = dict(zip(calls, pool.map(lambda call: ask(client, *call), calls), strict=True))
    assert together == alone
    assert len(generative) >= 10


def classify(client: OpenAI, model: str, **body: Any) -> Any:
    return client.post("/classifications", body={"model": model, **body}, cast_to=object)


def test_classifiers_label_and_do_not_chat(client: OpenAI, models: dict[str, str]) -> None:
    classifiers = [models[kind] for kind in models if not is_generative(client, kind)]
    assert classifiers
    for model in classifiers:
        found = classify(client, model, input=list(ROWS))["data"]
        assert {score["label"] for score in found[0]["scores"]} == {"good", "bad"}
        assert sum(score["score"] for score in found[0]["scores"]) == pytest.approx(1, abs=1e-5)
        with pytest.raises(BadRequestError, match="classifications"):
            ask(client, model, "happy")


def test_every_generative_model_takes_labels(client: OpenAI, models: dict[str, str]) -> None:
    for kind, model in {"base": "tiny", **models}.items():
        if kind == "base" or is_generative(client, kind):
            found = classify(client, model, input="happy", labels=["good", "bad", "neither"])
            scores = found["data"][0]["scores"]
            assert sum(score["score"] for score in scores) == pytest.approx(1, abs=1e-5), kind


def test_embeddings_come_as_the_sdk_asks_for_them(client: OpenAI) -> None:
    found = client.embeddings.create(model="tiny", input=["one", "two"])
    plain = client.embeddings.create(model="tiny", input="two", encoding_format="float")
    assert [len(item.embedding) for item in found.data] == [32, 32]
    assert found.data[1].embedding == pytest.approx(plain.data[0].embedding, abs=1e-5)
    assert sum(x * x for x in found.data[0].embedding) == pytest.approx(1, abs=1e-5)


def test_what_was_downloaded_is_called_again_and_trained_further(
    client: OpenAI, own_system: System, models: dict[str, str]
) -> None:
    headers = {"authorization": f"Bearer {client.api_key}"}
    for kind in ("lora", "soft_prompt", "full"):
        address = f"{own_system.url}/v1/adapters"
        archive = httpx.get(f"{address}/{models[kind]}/download", headers=headers).content
        sent = httpx.post(address, headers=headers, files={"file": ("a.zip", archive)}, timeout=60)
        assert sent.status_code == 201, sent.text
        name = sent.json()["id"]
        assert name != models[kind]
        assert ask(client, name, "sad") == ask(client, models[kind], "sad")
        job = client.fine_tuning.jobs.create(
            model=name,
            training_file=upload(client, ROW_BYTES),
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}},
        )
        assert wait_for_end(client, job.id).status == "succeeded"
