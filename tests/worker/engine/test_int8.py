"""An engine over weights in 8 bits answers as its own forward does, and says what it is."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from models.nn.backbone import Backbone
from models.nn.weight_only import hold_in_8_bits
from tests.worker.engine.conftest import World, ask_all, order
from tests.worker.engine.reference import Alone
from worker.engine.engine import Engine


def test_it_answers_with_adapters_and_without(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    engine, plain = start_engine(quantization="int8"), start_engine()
    assert engine.health()["quantization"] == "int8"
    assert plain.health()["quantization"] == "none"
    whole = Backbone.load(world.settings.base_folder, dtype=torch.float32)
    packed = replace(world, backbone=hold_in_8_bits(whole))
    adapters = [None, *world.adapters[:4]]
    prompts = [list(range(10 + n, 40 + n)) for n in range(len(adapters))]
    orders = [
        order(prompt, adapter=adapter, logprobs=True, max_tokens=1)
        for prompt, adapter in zip(prompts, adapters, strict=True)
    ]
    found, exact = ([said.tokens[0][0] for said in ask_all(one, orders)] for one in (engine, plain))
    for token, adapter, prompt in zip(found, adapters, prompts, strict=True):
        expected = Alone(packed, adapter).logprobs(prompt)[-1]
        assert token.logprob == pytest.approx(expected[token.id].item(), abs=1e-3)
        assert token.logprob == pytest.approx(expected.max().item(), abs=1e-3)
    assert any(near.logprob != other.logprob for near, other in zip(found, exact, strict=True))
    alone = [ask_all(engine, [one])[0].ids for one in orders]
    assert [answer.ids for answer in ask_all(engine, orders)] == alone
