"""An engine over weights in 8 bits answers as its own forward does, and says what it is."""

from collections.abc import Callable

from tests.worker.engine.conftest import World, ask_all, order
from worker.engine.engine import Engine


def test_it_answers_with_adapters_and_without(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    engine, plain = start_engine(quantization="int8"), start_engine()
    assert engine.health()["quantization"] == "int8"
    assert plain.health()["quantization"] == "none"
    adapters = [None, *world.adapters[:4]]
    orders = [
        order(range(10 + n, 40 + n), adapter=adapter, logprobs=True, max_tokens=1)
        for n, adapter in enumerate(adapters)
    ]
    pairs = zip(ask_all(engine, orders), ask_all(plain, orders), strict=True)
    firsts = [(near.tokens[0][0], exact.tokens[0][0]) for near, exact in pairs]
    assert sum(near.id == exact.id for near, exact in firsts) >= len(firsts) - 1
    assert any(near.logprob != exact.logprob for near, exact in firsts)
    alone = [ask_all(engine, [one])[0].ids for one in orders]
    assert [answer.ids for answer in ask_all(engine, orders)] == alone
