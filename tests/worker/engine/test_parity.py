"""A row's tokens are its own, whatever is computed beside it."""

from collections import defaultdict
from collections.abc import Callable

import pytest
import torch

from models.nn.artifact import load_artifact
from models.nn.attention import PackedCausal
from models.nn.backbone import Backbone
from models.nn.base import Base
from models.nn.executors import Segment, Segments
from models.nn.terms import Terms
from models.wire import AdapterRef, GenerateRequest
from tests.worker.engine.conftest import World, ask_all, order
from worker.engine.engine import Engine

LENGTHS = (3, 40, 7, 90, 12, 1, 25, 60, 5, 33, 18, 70, 2, 11, 50, 9)


def mixed_orders(world: World) -> list[GenerateRequest]:
    """16 prompts: each adapter once or twice, and the base."""
    generator = torch.Generator().manual_seed(7)
    adapters = [*world.adapters, None, *world.adapters[:6], None]
    return [
        order(
            torch.randint(3, 250, (length,), generator=generator).tolist(),
            adapter=adapter,
            max_tokens=6 + index,
            ignore_eos=True,
            logprobs=True,
        )
        for index, (length, adapter) in enumerate(zip(LENGTHS, adapters, strict=True))
    ]


@pytest.mark.parametrize(
    "limits",
    [{"rows": 16}, {"rows": 5, "prefill_tokens": 16}, {"rows": 7, "prefill_tokens": 3}],
    ids=["at once", "few slots", "tiny chunks"],
)
def test_mixed_rows_equal_each_alone(
    world: World, start_engine: Callable[..., Engine], limits: dict[str, int]
) -> None:
    orders = mixed_orders(world)
    alone_engine = start_engine(rows=1)
    alone = [ask_all(alone_engine, [request])[0] for request in orders]
    engine = start_engine(**limits)
    exact = Backbone.load(world.settings.base_folder, dtype=torch.float64)
    most: dict[AdapterRef | None, float] = defaultdict(float)
    for request, one in zip(orders, alone, strict=True):
        found = blur(world, exact, request, one.ids)
        most[request.adapter] = max(most[request.adapter], found)
    blurs = [most[request.adapter] for request in orders]
    mixed = ask_all(engine, orders) + ask_all(engine, orders[::-1], gap=0.004)[::-1]
    assert max(blurs) < 4e-3
    for expected, got, bound in zip(alone * 2, mixed, blurs * 2, strict=True):
        assert got.ids == expected.ids
        assert [token.logprob for token in got.tokens[0]] == pytest.approx(
            [token.logprob for token in expected.tokens[0]], abs=1e-4 + 4 * bound
        )


def blur(world: World, exact: Backbone, request: GenerateRequest, drawn: list[int]) -> float:
    """Return how far an answer's log-probabilities are, at most, from those of float64 products.

    A random network has tokens at which it magnifies what is rounded, and there that is far. Which
    way it goes is luck: at one such token of an adapter these products were 3.5e-5 off, those of
    the engine 1.6e-4 alone and 8.5e-5 in company; in another answer of it all were 3.6e-4 and more.
    So what counts is the most that an adapter's answers show.
    """
    prompt = list(request.prompt_ids or [])
    ids = torch.tensor([*prompt, *drawn])
    before = torch.arange(len(prompt), len(ids)) - 1
    logprobs = []
    for backbone in (world.backbone, exact):
        terms = load_terms(world, request.adapter, base=backbone.base)
        with torch.inference_mode():
            logits_nv = logits(backbone, ids, before, terms=terms).double()
        logprobs.append(logits_nv.log_softmax(-1)[torch.arange(len(drawn)), drawn])
    return float((logprobs[0] - logprobs[1]).abs().max())


def test_tokens_equal_the_trainers_forward(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    orders = mixed_orders(world)
    answers = ask_all(start_engine(rows=6, prefill_tokens=16), orders)
    for request, answer in zip(orders, answers, strict=True):
        assert answer.ids == without_cache(world, request)


def without_cache(world: World, request: GenerateRequest) -> list[int]:
    """Greedy tokens by the whole sequence anew for each, as the trainer computes it."""
    terms = load_terms(world, request.adapter, base=world.backbone.base)
    ids = list(request.prompt_ids or [])
    prompt = len(ids)
    while len(ids) < prompt + request.sampling["max_tokens"]:
        last = torch.tensor([len(ids) - 1])
        with torch.inference_mode():
            logits_1v = logits(world.backbone, torch.tensor(ids), last, terms=terms)
        ids.append(int(logits_1v.argmax()))
    return ids[prompt:]


def logits(
    backbone: Backbone, ids_t: torch.Tensor, rows_n: torch.Tensor, *, terms: Terms | None
) -> torch.Tensor:
    """Return (n, V) behind some tokens of a sequence (t,)."""
    executor = Segments([Segment(0, len(ids_t), terms)])
    hidden_td = backbone.hidden(
        ids_t,
        positions=torch.arange(len(ids_t)),
        attention=PackedCausal([(0, len(ids_t))]),
        executor=executor,
    )
    return backbone.logits(hidden_td[rows_n], executor=executor.at(rows_n))


def load_terms(world: World, adapter: AdapterRef | None, *, base: Base) -> Terms | None:
    if adapter is None:
        return None
    folder = world.settings.data_folder / adapter.name
    artifact = load_artifact(folder, shape=world.backbone.shape)
    return Terms.of(artifact.method, artifact.tensors, base)
