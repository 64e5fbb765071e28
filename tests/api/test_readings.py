"""Embeddings and classifications, as the SDK asks for them."""

import base64
import math
import struct
import time
from typing import Any

import httpx
import pytest
from openai import APIStatusError, BadRequestError, InternalServerError, NotFoundError, OpenAI

from tests.api.conftest import Stack, add_adapter, tenant_of, user

LENGTH = math.hypot(5, ord("h"))
UNIT = [5 / LENGTH, ord("h") / LENGTH, 0, 0, 0, 0, 0, 0]


def test_the_sdk_reads_unit_vectors_from_base64(stack: Stack, client: OpenAI) -> None:
    reply = client.embeddings.create(model="tiny", input=["hello", "h"])
    assert [item.index for item in reply.data] == [0, 1]
    assert reply.data[0].embedding == pytest.approx(UNIT)
    assert (reply.object, reply.model, reply.data[0].object) == ("list", "tiny", "embedding")
    assert (reply.usage.prompt_tokens, reply.usage.total_tokens) == (6, 6)
    asked = stack.engine.read[-1]
    assert (asked.adapter, asked.pooling) == (None, "mean")


def test_both_encodings_say_the_same(http: httpx.Client) -> None:
    body = {"model": "tiny", "input": "hello", "encoding_format": "base64"}
    text = http.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    body["encoding_format"] = "float"
    numbers = http.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    assert list(struct.unpack("<8f", base64.b64decode(text))) == numbers


def test_a_vector_without_a_direction_is_a_fault(client: OpenAI) -> None:
    """The ids sum up to zero."""
    with pytest.raises(InternalServerError) as failed:
        client.embeddings.create(model="tiny", input=[[1], [0]])
    assert (failed.value.status_code, failed.value.code) == (500, "engine_fault")


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("hello", [{"text": "hello"}]),
        (["a", "b"], [{"text": "a"}, {"text": "b"}]),
        ([1, 2, 3], [{"ids": [1, 2, 3]}]),
        ([[1, 2], [3]], [{"ids": [1, 2]}, {"ids": [3]}]),
    ],
)
def test_every_form_of_input(stack: Stack, client: OpenAI, given: Any, inputs: list[Any]) -> None:
    extra = {"pooling": "last"}
    reply = client.embeddings.create(
        model="tiny", input=given, dimensions=8, user="me", extra_body=extra
    )
    assert len(reply.data) == len(inputs)
    asked = stack.engine.read[-1]
    assert asked.pooling == "last"
    told = [{"text": i.text} if i.text else {"ids": i.ids} for i in asked.inputs]
    assert told == inputs


def test_many_inputs_go_a_few_at_a_time(stack: Stack, client: OpenAI) -> None:
    before = len(stack.engine.read)
    texts = ["x" * (1 + number % 7) for number in range(100)]
    reply = client.embeddings.create(model="tiny", input=texts)
    assert [len(request.inputs) for request in stack.engine.read[before:]] == [32, 32, 32, 4]
    assert [item.index for item in reply.data] == list(range(100))
    lengths = [round(120 * item.embedding[0] / item.embedding[1]) for item in reply.data]
    assert lengths == [len(text) for text in texts]


@pytest.mark.parametrize(
    ("changes", "param", "word"),
    [
        ({"input": ""}, "input", "at least 1 character"),
        ({"input": []}, "input", "at least 1 item"),
        ({"input": ["a", ""]}, "input.1", "at least 1 character"),
        ({"input": [[1], []]}, "input.1", "at least 1 item"),
        ({"input": ["a"] * 2049}, "input", "2048"),
        ({"input": ["a", [1]]}, "input.1", "valid string"),
        ({"input": 3}, "input", "a list of texts"),
        ({"input": [1, -1]}, "input.1", "greater than or equal to 0"),
        ({"input": [{}]}, "input", "a list of texts"),
        ({"dimensions": 7}, "dimensions", "8"),
        ({"encoding_format": "int8"}, "encoding_format", "base64"),
        ({"pooling": "max"}, "pooling", "mean"),
        ({"whatever": 1}, "whatever", "Unknown"),
    ],
)
def test_what_cannot_be_embedded(
    http: httpx.Client, changes: dict[str, Any], param: str, word: str
) -> None:
    response = http.post("/v1/embeddings", json={"model": "tiny", "input": "a", **changes})
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"] == param
    assert word in error["message"]
    assert len(error["message"]) < 160


def test_embeddings_under_an_adapter_but_not_of_a_classifier(
    stack: Stack, client: OpenAI, key: str, classifier: str
) -> None:
    with stack.database.unit_of_work() as session:
        mine = add_adapter(session, tenant_of(stack, key))
    client.embeddings.create(model=mine.name, input="a")
    assert stack.engine.read[-1].adapter.digest == mine.digest
    with pytest.raises(BadRequestError) as refused:
        client.embeddings.create(model=classifier, input="a")
    assert (refused.value.code, refused.value.param) == ("not_generative", "model")
    with pytest.raises(NotFoundError):
        client.embeddings.create(model="ft:nothing", input="a")


@pytest.mark.parametrize("path", ["/embeddings", "/classifications"])
def test_the_engines_refusals_are_told(client: OpenAI, path: str) -> None:
    body = {"model": "tiny", "input": ["a", "refuse"]}
    if path == "/classifications":
        body["labels"] = ["x", "y"]
    with pytest.raises(APIStatusError) as refused:
        client.post(path, body=body, cast_to=object)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")
    with pytest.raises(APIStatusError) as busy:
        client.post(path, body={**body, "input": "overload"}, cast_to=object)
    assert (busy.value.status_code, busy.value.code) == (503, "engine_overloaded")


@pytest.mark.parametrize(
    ("texts", "param"),
    [(["a", "refuse by name"], "input.1"), (["a"] * 34 + ["refuse by name"], "input.34")],
)
def test_an_input_is_named_by_its_place_in_the_whole_list(
    http: httpx.Client, texts: list[str], param: str
) -> None:
    answer = http.post("/v1/embeddings", json={"model": "tiny", "input": texts})
    assert answer.json()["error"]["param"] == param
    one = http.post("/v1/embeddings", json={"model": "tiny", "input": texts[-1]})
    assert one.json()["error"]["param"] == "input"


def test_who_leaves_stops_the_work(stack: Stack, http: httpx.Client) -> None:
    before = len(stack.engine.read)
    body = {"model": "tiny", "input": ["stall"] + ["a"] * 40}
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/embeddings", json=body, timeout=0.5)
    time.sleep(0.3)
    assert len(stack.engine.read) == before + 1


@pytest.fixture
def classifier(stack: Stack, key: str) -> str:
    """The name of an adapter that has labels of its own."""
    method = {"type": "head", "labels": ["ham", "spam"]}
    with stack.database.unit_of_work() as session:
        return add_adapter(session, tenant_of(stack, key), method=method).name


def classify(client: OpenAI, **body: Any) -> dict[str, Any]:
    return client.post("/classifications", body=body, cast_to=dict[str, Any])


def test_a_generative_model_chooses_among_labels(stack: Stack, client: OpenAI) -> None:
    reply = classify(client, model="tiny", input=["a", "turn"], labels=["x", "y", "z"])
    assert reply["object"] == "list"
    assert reply["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    first, second = reply["data"]
    assert (first["object"], first["index"], second["index"]) == ("classification", 0, 1)
    assert (first["label"], first["score"]) == ("z", 0.5)
    assert [row["label"] for row in first["scores"]] == ["z", "y", "x"]
    assert [row["label"] for row in second["scores"]] == ["x", "y", "z"]
    assert sum(row["score"] for row in first["scores"]) == pytest.approx(1)
    assert stack.engine.read[-1].labels == ["x", "y", "z"]
    best = classify(client, model="tiny", input="a", labels=["x", "y", "z"], top_k=1)
    assert best["data"][0]["scores"] == [{"label": "z", "score": 0.5}]


def test_a_classifier_has_labels_of_its_own(stack: Stack, client: OpenAI, classifier: str) -> None:
    reply = classify(client, model=classifier, input=[user("a"), user("turn")])
    assert [row["label"] for row in reply["data"]] == ["spam", "ham"]
    asked = stack.engine.read[-1]
    assert asked.labels is None
    assert [item.messages for item in asked.inputs] == [user("a"), user("turn")]
    one = classify(client, model=classifier, input=user("a"))
    assert [row["index"] for row in one["data"]] == [0]


def test_many_labels_make_small_batches(stack: Stack, client: OpenAI) -> None:
    before = len(stack.engine.read)
    labels = [str(number) for number in range(256)]
    classify(client, model="tiny", input=["a"] * 5, labels=labels)
    assert [len(request.inputs) for request in stack.engine.read[before:]] == [2, 2, 1]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"labels": ["x"]}, "labels"),
        ({"labels": ["x", "x"]}, "labels"),
        ({"labels": ["x", " "]}, "labels"),
        ({"labels": [str(number) for number in range(257)]}, "labels"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["a"] * 1025}, "input"),
        ({"input": [{"role": "user"}]}, "input"),
        ({"input": ["a", {"role": "user", "content": "a"}]}, "input"),
        ({"input": user([{"type": "image_url"}])}, "input"),
        ({"input": [{"role": "tool", "content": "a"}]}, "input"),
        ({"input": [1, 2]}, "input"),
        ({"top_k": 0}, "top_k"),
    ],
)
def test_what_cannot_be_classified(http: httpx.Client, changes: dict[str, Any], param: str) -> None:
    body = {"model": "tiny", "input": "a", "labels": ["x", "y"], **changes}
    response = http.post("/v1/classifications", json=body)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"].split(".")[0] == param
    assert len(error["message"]) < 160
