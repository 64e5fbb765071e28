"""Every kind in one batch over the cache, on bases with what a plain Llama lacks.

Biases, fused layers, norms of queries and keys, windows, capped scores, offset gains, untied heads.
"""

import asyncio
from pathlib import Path

import pytest
import torch
import transformers

from core.bases import write_manifest
from core.errors import InvalidRequest
from core.settings import Settings
from core.store import Store
from models.nn.backbone import Backbone
from models.nn.chat import Renderer
from models.nn.methods import METHODS
from tests.models.nn.families import VARIANTS
from tests.tiny import make_tiny_base, make_tokenizer
from tests.worker.engine.conftest import (
    Kind,
    TinyProblem,
    World,
    ask_all,
    engine_settings,
    store_kind,
    until,
)
from tests.worker.engine.reference import Alone
from tests.worker.engine.test_kinds import generative, prompts, written
from worker.engine.engine import Engine

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make_world(variant: str, data: Path) -> World:
    settings = Settings(data_dir=data, base="tiny", engine=engine_settings())
    folder = make_tiny_base(settings.base_folder)
    name, values = VARIANTS[variant]
    sizes = {**SIZES, **values, "vocab_size": len(make_tokenizer())}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, name)(**sizes)
        network = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    network.save_pretrained(folder)
    renderer = Renderer.load(folder)
    write_manifest(folder, id="tiny", shape={}, renderer_digest=renderer.digest)
    backbone = Backbone.load(folder, dtype=torch.float32)
    return World(settings, backbone, renderer, [], Store(settings.store))


def store_kinds(world: World) -> list[Kind]:
    problem, kinds = TinyProblem(world.renderer, world.backbone), []
    methods = [cls(**example) for cls in METHODS.values() for example in cls.examples]
    for number, method in enumerate(methods):
        try:
            method.tensors(world.backbone.shape)
        except InvalidRequest:
            assert world.backbone.shape.parts  # it names layers that are joined here
            continue
        kinds.append(store_kind(world, method, problem=problem, number=number))
    return kinds


@pytest.mark.parametrize(
    "variant", ["llama-biased-tied", "mistral-window", "gemma2", "gemma3", "phi3", "qwen3"]
)
def test_all_kinds_in_one_batch_equal_each_alone(variant: str, tmp_path: Path) -> None:
    world = make_world(variant, tmp_path)
    adapters = [None, *(kind.adapter for kind in generative(store_kinds(world)))]
    orders = [
        written(ids, adapter, tokens=4 + place % 4)
        for place, (ids, adapter) in enumerate(zip(prompts(len(adapters)), adapters, strict=True))
    ]
    settings = engine_settings(rows=12, prefill_tokens=40)
    engine = Engine(world.settings.model_copy(update={"engine": settings}))
    engine.start()
    try:
        asyncio.run(until(lambda: engine.health()["ready"]))
        answers = ask_all(engine, orders, gap=0.002)
    finally:
        engine.close()
    for asked, answer in zip(orders, answers, strict=True):
        expected, logprobs = Alone(world, asked.adapter).greedy(
            asked.prompt_ids or [], tokens=asked.sampling["max_tokens"]
        )
        assert answer.ids == expected, asked.adapter
        got = [token.logprob for token in answer.tokens[0]]
        assert got == pytest.approx(logprobs, abs=1e-5, rel=1e-5), asked.adapter
