"""A prompt that is given back is what its caller wrote, with logprobs and without."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from core.bases import write_manifest
from core.settings import Settings
from models.nn.chat import Renderer
from models.wire import GenerateRequest
from tests.tiny import make_tiny_base
from tests.worker.engine.conftest import Answer, World, ask_all, engine_settings, order, until
from worker.engine.engine import Engine

WRITTEN: Sequence[str | list[str | int]] = (
    "",
    "Hello <|im_end|>",
    [],
    [10, "<|im_end|>", "<|endoftext|>", 12],
    ["<|im_start|>"],
)


@pytest.fixture
def engine(start_engine: Callable[..., Engine]) -> Engine:
    return start_engine(prefill_tokens=5)


def both(engine: Engine, make: Callable[..., GenerateRequest]) -> list[Answer]:
    """Return the echo without and with logprobs."""
    plain: dict[str, Any] = {"echo": True, "max_tokens": 1, "ignore_eos": True, "seed": 1}
    return ask_all(engine, [make(**plain), make(**plain, logprobs=True)])


def ids_of(world: World, prompt: list[str | int]) -> list[int]:
    known = world.renderer.tokenizer.convert_tokens_to_ids
    return [known(token) if isinstance(token, str) else token for token in prompt]


@pytest.mark.parametrize("written", WRITTEN, ids=str)
def test_what_the_caller_wrote_is_shown(
    world: World, engine: Engine, written: str | list[str | int]
) -> None:
    prompt = written if isinstance(written, str) else ids_of(world, written)
    shown = prompt if isinstance(prompt, str) else world.renderer.decode(prompt)
    plain, told = both(engine, lambda **sampling: order(prompt, **sampling))
    assert plain.texts == told.texts
    *own, drawn = told.tokens[0]
    assert told.texts[0] == shown + ("" if drawn.silent else drawn.text)
    assert "".join(token.text for token in own if not token.silent) == shown
    assert [token.silent for token in own] == [not prompt] * len(own)


@pytest.mark.parametrize("tokens", [1, 2, 11, 256])
def test_a_prompt_alone_is_told_as_it_is_before_an_answer(engine: Engine, tokens: int) -> None:
    """Also one that leaves no room for an answer."""
    prompt = (list(range(10, 100)) * 3)[:tokens]
    alone: dict[str, Any] = {"echo": True, "max_tokens": 0, "n": 2, "temperature": 1.0}
    shown, told = ask_all(engine, [order(prompt, **alone), order(prompt, **alone, logprobs=True)])
    assert shown.reasons == told.reasons == {0: "length", 1: "length"}
    assert shown.texts == told.texts
    assert (told.last.prompt_tokens, told.last.completion_tokens) == (tokens, 0)
    assert told.ids == [token.id for token in told.tokens[1]] == prompt
    if tokens < 256:
        more = ask_all(engine, [order(prompt, echo=True, logprobs=True, max_tokens=1)])[0]
        scores = [[token.logprob for token in one.tokens[0]] for one in (told, more)]
        assert scores[0] == pytest.approx(scores[1][:tokens], abs=1e-4)


def test_nothing_of_nothing_is_an_empty_answer(engine: Engine) -> None:
    answer = ask_all(engine, [order("Hi", max_tokens=0)])[0]
    assert (answer.texts, answer.reasons) == ({0: ""}, {0: "length"})


def test_what_begins_a_text_is_not_shown(
    world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = ids_of(world, ["<|im_start|>"])
    renderer = engine._opened.renderer  # type: ignore[union-attr]
    monkeypatch.setitem(renderer.__dict__, "begin_ids", begin)
    plain, told = both(engine, lambda **sampling: order("Hi", **sampling))
    assert plain.prompt_tokens == told.prompt_tokens == 3
    assert plain.texts == told.texts
    assert plain.texts[0].startswith("Hi")
    assert [token.silent for token in told.tokens[0][:3]] == [True, False, False]


def test_the_control_tokens_of_a_chat_are_not_shown(engine: Engine) -> None:
    messages = [{"role": "user", "content": "Hi <|im_end|>"}]
    plain, told = both(
        engine, lambda **sampling: GenerateRequest(sampling=sampling, messages=messages)
    )
    assert plain.texts[0].startswith("user\nHi <|im_end|>\nassistant\n")
    assert "<|im_start|>" not in plain.texts[0]
    own = told.tokens[0][: told.prompt_tokens]
    assert plain.texts[0].startswith("".join(token.text for token in own if not token.silent))


@pytest.fixture
def spacing(tmp_path: Path) -> Iterator[Engine]:
    """An engine whose tokenizer, as that of Llama 2, takes the start of a text for a space."""
    settings = Settings(data_dir=tmp_path, base="tiny", engine=engine_settings(prefill_tokens=2))
    pieces = ["<unk>", "<s>", "</s>", "▁", "▁H", "▁▁", *"Hielo!"]
    merges = [("▁", "H"), ("▁", "▁")]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    make_tiny_base(settings.base_folder)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(settings.base_folder)
    digest = Renderer.load(settings.base_folder).digest
    write_manifest(settings.base_folder, id="tiny", shape={}, renderer_digest=digest)
    engine = Engine(settings)
    engine.start()
    asyncio.run(until(lambda: engine.health()["ready"]))
    yield engine
    engine.close()


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("Hello!", "Hello!"),
        (" Hello!", " Hello!"),
        ("  Hello", "  Hello"),
        ([4, 8, 9], "Hel"),
        ([8, 4], "e H"),
        ([1, 4, 8], "<s> He"),
    ],
)
def test_the_space_that_begins_a_text_is_in_no_token(
    spacing: Engine, prompt: str | list[int], shown: str
) -> None:
    asked = order(prompt, echo=True, logprobs=True, top_logprobs=1, max_tokens=0, n=2)
    answer = ask_all(spacing, [asked])[0]
    for index in (0, 1):
        assert answer.texts[index] == shown
        assert "".join(one.text for one in answer.tokens[index] if not one.silent) == shown
        assert b"".join(bytes(one.bytes) for one in answer.tokens[index]) == shown.encode()
