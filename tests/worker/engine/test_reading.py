"""Vectors and labels: equal to the forward without a cache, whatever is computed beside them."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.errors import GraftworkError, InvalidRequest
from models.nn.chat import Renderer
from models.wire import AdapterRef, ClassifyReply, ClassifyRequest, EmbedReply, EmbedRequest, Input
from tests.worker.engine.conftest import Kind, World, ask, order, put_adapter, until
from tests.worker.engine.reference import Alone
from worker.engine.engine import Engine

TEXTS = ("a", "What is it?", "Rain at noon, and then <|im_end|> sun again.", "so")
LABELS = ["yes", "no", "yes please", "no, not now", ""]
SMALL = {"rows": 5, "prefill_tokens": 16}


def gather(*asked: Any) -> list[Any]:
    async def play() -> list[Any]:
        return await asyncio.gather(*(make() for make in asked), return_exceptions=True)

    return asyncio.run(play())


def reading(engine: Engine, request: EmbedRequest | ClassifyRequest) -> Callable[[], Any]:
    if isinstance(request, EmbedRequest):
        return lambda: engine.embed(request)
    return lambda: engine.classify(request)


def read(engine: Engine, request: EmbedRequest | ClassifyRequest) -> Any:
    reply = gather(reading(engine, request))[0]
    if isinstance(reply, BaseException):
        raise reply
    return reply


def texts(*given: str) -> list[Input]:
    return [Input(text=text) for text in given]


def vectors(reply: EmbedReply) -> list[np.ndarray]:
    return [np.frombuffer(vector, dtype="<f4") for vector in reply.vectors]


def as_asked(kind: Kind | None, text: str) -> Input:
    """Return a bare text in the form of the adapter's training; the base has a template."""
    if kind is not None and kind.form != "chat":
        return Input(text=text)
    system = kind and kind.system
    turns = [{"role": "system", "content": system}] if system else []
    return Input(messages=[*turns, {"role": "user", "content": text}])


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("limits", [{}, SMALL], ids=["at once", "chunked"])
def test_embeddings_equal_the_pooled_forward(
    world: World,
    kinds: list[Kind],
    start_engine: Callable[..., Engine],
    pooling: Any,
    limits: dict[str, int],
) -> None:
    """All kinds and the base at once, with others that write."""
    engine = start_engine(**limits)
    adapters = [None, *(kind.adapter for kind in kinds if kind.method.class_labels is None)]
    requests = [
        EmbedRequest(inputs=texts(*TEXTS), adapter=adapter, pooling=pooling) for adapter in adapters
    ]
    writing = order(list(range(10, 40)), adapter=world.adapters[0], max_tokens=40, ignore_eos=True)
    replies = gather(
        *(reading(engine, request) for request in requests), lambda: ask(engine, writing)
    )
    for adapter, reply in zip(adapters, replies, strict=False):
        alone = Alone(world, adapter)
        assert reply.tokens == [len(alone.encode(text)) for text in TEXTS]
        for text, vector in zip(TEXTS, vectors(reply), strict=True):
            expected = alone.pooled(alone.encode(text), pooling=pooling).numpy()
            np.testing.assert_allclose(vector, expected, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize(("rows", "held"), [(1, 1), (2, 1), (5, 2)])
def test_a_long_list_leaves_slots_to_others(
    start_engine: Callable[..., Engine], rows: int, held: int
) -> None:
    engine = start_engine(rows=rows, prefill_tokens=8, waiting=4)
    many = EmbedRequest(inputs=texts(*(f"text {index}" for index in range(300))))

    async def play() -> bool:
        task = asyncio.create_task(engine.embed(many))
        await until(lambda: engine.health()["rows"] == held)
        assert engine.health()["waiting"] == 0
        await ask(engine, order([5, 6, 7], max_tokens=2))
        early = not task.done()
        reply = await task
        assert len(reply.vectors) == 300
        return early

    assert asyncio.run(play())
    assert not engine.busy


def test_tokens_and_conversations_are_embedded_too(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    inputs = [Input(ids=[5, 6, 7]), Input(messages=messages)]
    reply = read(start_engine(), EmbedRequest(inputs=inputs, pooling="last"))
    base = Alone(world, None)
    for ids, vector in zip(
        ([5, 6, 7], world.renderer.prompt(messages)), vectors(reply), strict=True
    ):
        expected = base.pooled(list(ids), pooling="last").numpy()
        np.testing.assert_allclose(vector, expected, atol=1e-5)


@pytest.mark.parametrize("limits", [{}, SMALL], ids=["at once", "chunked"])
def test_a_classifiers_scores_are_its_heads(
    world: World, kinds: list[Kind], start_engine: Callable[..., Engine], limits: dict[str, int]
) -> None:
    engine = start_engine(**limits)
    chosen = [kind for kind in kinds if kind.method.class_labels is not None]
    assert chosen
    requests = [
        ClassifyRequest(
            inputs=texts(*TEXTS),
            adapter=kind.adapter,
            labels=None if place % 2 else list(kind.method.class_labels or ())[::-1],
        )
        for place, kind in enumerate(chosen)
    ]
    writing = order(list(range(10, 40)), adapter=world.adapters[2], max_tokens=40, ignore_eos=True)
    replies = gather(
        *(reading(engine, request) for request in requests), lambda: ask(engine, writing)
    )
    for kind, reply in zip(chosen, replies, strict=False):
        assert tuple(reply.labels) == kind.method.class_labels
        alone = Alone(world, kind.adapter)
        for text, scores, count in zip(TEXTS, reply.scores, reply.tokens, strict=True):
            ids = prompt_ids(world.renderer, as_asked(kind, text))
            assert count == len(ids)
            assert scores == pytest.approx(alone.class_scores(ids), abs=1e-5)
            assert sum(scores) == pytest.approx(1.0)


def prompt_ids(renderer: Renderer, asked: Input) -> list[int]:
    if asked.messages is not None:
        return renderer.prompt(asked.messages)
    return renderer.completion_prompt(asked.text or "")


def label_examples(alone: Alone, asked: Input, labels: Sequence[str]) -> list[Any]:
    """Return, for each label, the prompt and what training would label after it."""
    renderer = alone.world.renderer
    if asked.messages is None:
        examples = [renderer.completion_example(asked.text or "", label) for label in labels]
        prompt = renderer.completion_prompt(asked.text or "")
        return [(alone.prompt(prompt), example.ids[len(prompt) :]) for example in examples]
    shown = alone.chat(asked.messages)
    prompt = renderer.prompt(shown)
    found = []
    for label in labels:
        example = renderer.example([*shown, {"role": "assistant", "content": label}])
        place = range(len(prompt), len(example.ids))
        found.append((prompt, [example.ids[row] for row in place if example.labelled[row]]))
    return found


@pytest.mark.parametrize("limits", [{}, SMALL], ids=["at once", "chunked"])
def test_labels_are_scored_as_answers(
    world: World, kinds: list[Kind], start_engine: Callable[..., Engine], limits: dict[str, int]
) -> None:
    engine = start_engine(**limits)
    chosen = [None, *(kind for kind in kinds if kind.method.class_labels is None)]
    requests = [
        ClassifyRequest(inputs=texts(*TEXTS), adapter=kind and kind.adapter, labels=LABELS)
        for kind in chosen
    ]
    writing = order(list(range(10, 40)), adapter=world.adapters[2], max_tokens=40, ignore_eos=True)
    replies = gather(
        *(reading(engine, request) for request in requests), lambda: ask(engine, writing)
    )
    for kind, reply in zip(chosen, replies, strict=False):
        assert isinstance(reply, ClassifyReply), reply
        assert reply.labels == LABELS
        alone = Alone(world, kind and kind.adapter)
        for text, scores, count in zip(TEXTS, reply.scores, reply.tokens, strict=True):
            examples = label_examples(alone, as_asked(kind, text), LABELS)
            assert scores == pytest.approx(alone.label_scores(examples), abs=1e-5)
            assert count == len(examples[0][0])


def test_a_conversation_is_rendered_for_one_label_and_for_none_if_it_does_not_fit(
    start_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, lengths, example = start_engine(), list[int](), Renderer.example

    def noted(self: Renderer, messages: Sequence[Any]) -> Any:
        lengths.append(len(messages))
        return example(self, messages)

    monkeypatch.setattr(Renderer, "example", noted)
    messages = [{"role": "user", "content": "Hi"}] * 3
    read(engine, ClassifyRequest(inputs=[Input(messages=messages)], labels=LABELS))
    assert lengths == [4, *(2 for _ in LABELS)]
    lengths.clear()
    with pytest.raises(InvalidRequest, match="256 tokens"):
        read(engine, ClassifyRequest(inputs=[Input(messages=messages * 20)], labels=LABELS))
    assert not lengths


def test_labels_that_do_not_fit_one_slot_get_several(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    labels = [chr(97 + index) * 30 for index in range(20)]
    request = ClassifyRequest(inputs=texts("short", "x" * 150), labels=labels)
    engine = start_engine(prefill_tokens=50)
    reply = read(engine, request)
    base = Alone(world, None)
    for text, scores in zip(("short", "x" * 150), reply.scores, strict=True):
        examples = label_examples(base, as_asked(None, text), labels)
        assert scores == pytest.approx(base.label_scores(examples), abs=1e-5)


def test_conversations_and_tokens_are_labelled(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Well?"},
    ]
    inputs = [Input(messages=messages), Input(ids=[9, 8, 7])]
    reply = read(start_engine(), ClassifyRequest(inputs=inputs, labels=["yes", "no"]))
    base = Alone(world, None)
    chat = label_examples(base, inputs[0], ["yes", "no"])
    plain = [
        ([9, 8, 7], world.renderer.completion_example("", label).ids[1:]) for label in ("yes", "no")
    ]
    assert reply.scores[0] == pytest.approx(base.label_scores(chat), abs=1e-5)
    assert reply.scores[1] == pytest.approx(base.label_scores(plain), abs=1e-5)


@pytest.mark.parametrize(
    ("request_", "code", "param"),
    [
        (EmbedRequest(inputs=texts("fine", "")), "invalid_prompt", "inputs[1]"),
        (EmbedRequest(inputs=[Input(ids=[])]), "invalid_prompt", "inputs[0]"),
        (EmbedRequest(inputs=[]), "invalid_prompt", "inputs"),
        (EmbedRequest(inputs=[Input()]), "invalid_prompt", "inputs[0]"),
        (EmbedRequest(inputs=[Input(ids=[1, 10**6])]), "invalid_prompt", "inputs[0]"),
        (EmbedRequest(inputs=texts("a", "b" * 257)), "context_length_exceeded", "inputs[1]"),
        (EmbedRequest(inputs=texts("b" * 100_000)), "context_length_exceeded", "inputs[0]"),
        (ClassifyRequest(inputs=texts("a")), "labels_required", "labels"),
        (ClassifyRequest(inputs=texts("a"), labels=["x", "x"]), "invalid_value", "labels"),
        (
            ClassifyRequest(inputs=texts("a", "b" * 190), labels=["x", "y" * 80]),
            "context_length_exceeded",
            "inputs[1]",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(
    start_engine: Callable[..., Engine], request_: Any, code: str, param: str
) -> None:
    engine = start_engine()
    with pytest.raises(InvalidRequest) as refused:
        read(engine, request_)
    assert (refused.value.code, refused.value.param) == (code, param)
    assert len(vectors(read(engine, EmbedRequest(inputs=texts("fine"))))) == 1
    assert engine.health()["rows"] == engine.health()["waiting"] == 0


def test_a_classifier_takes_no_other_labels(
    world: World, kinds: list[Kind], start_engine: Callable[..., Engine]
) -> None:
    engine = start_engine()
    kind = next(kind for kind in kinds if kind.method.class_labels)
    with pytest.raises(InvalidRequest) as refused:
        read(engine, ClassifyRequest(inputs=texts("a"), adapter=kind.adapter, labels=["other"]))
    assert (refused.value.code, refused.value.param) == ("labels_not_allowed", "labels")


def test_an_unknown_adapter_is_told(start_engine: Callable[..., Engine]) -> None:
    request = EmbedRequest(inputs=texts("a"), adapter=AdapterRef("gone", "0" * 64))
    with pytest.raises(GraftworkError) as refused:
        read(start_engine(), request)
    assert refused.value.code == "adapter_not_found"


def test_a_caller_who_leaves_frees_the_rows(start_engine: Callable[..., Engine]) -> None:
    engine = start_engine(rows=4, prefill_tokens=2)

    async def play() -> None:
        many = EmbedRequest(inputs=texts(*["some text"] * 200))
        task = asyncio.create_task(engine.embed(many))
        await until(lambda: engine.health()["rows"] == 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: engine.health()["rows"] == engine.health()["waiting"] == 0)

    asyncio.run(play())
    assert not engine.busy


def test_labels_follow_a_prompt_as_completions_did(
    world: World, start_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    prompt = {"format": "completion", "system": None, "lead": " "}
    adapter = put_adapter(
        world.store,
        tmp_path / "spaced",
        backbone=world.backbone,
        block={"type": "lora", "rank": 2},
        seed=5,
        provenance={"prompt": prompt},
    )
    engine = start_engine()
    bare, spaced = (
        read(engine, ClassifyRequest(inputs=texts("a b"), adapter=adapter, labels=labels))
        for labels in (["yes", "no"], [" yes", " no"])
    )
    assert bare.scores == spaced.scores
    assert bare.labels == ["yes", "no"]
