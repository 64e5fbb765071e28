"""A tiny base, adapters in a store, and engines over them."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from core.bases import write_manifest
from core.settings import EngineSettings, ServingSettings, Settings
from core.store import Store
from models.nn.artifact import save_artifact
from models.nn.backbone import Backbone
from models.nn.base import Base
from models.nn.chat import Renderer
from models.nn.forward import Part, forward
from models.nn.head import pool
from models.nn.kernels.native.batch import Batch
from models.nn.kernels.native.step import NativeStep
from models.nn.methods import METHODS, parse_method
from models.nn.methods.base import Method
from models.nn.problem import Pair
from models.nn.terms import Pooling
from models.wire import AdapterRef, GenerateDelta, GenerateRequest, GenerateStart, TokenChoice
from tests.models.nn.families import random_tensors
from tests.tiny import make_tiny_base
from worker.engine import writer
from worker.engine.engine import Engine

BASE = "tiny"
LABELS = ("no", "maybe", "yes")
Taken = list[tuple[int, int]]
BLOCKS = (
    {"type": "lora", "rank": 2},
    {"type": "lora", "rank": 4, "alpha": 8.0},
    {"type": "ia3"},
    {"type": "lora", "rank": 8, "use_rslora": True},
    {"type": "lora", "rank": 1, "target_modules": ["q_proj", "v_proj"]},
    {"type": "ia3"},
    {"type": "lora", "rank": 16},
    {"type": "lora", "rank": 3, "target_modules": ["down_proj"]},
)


@dataclass
class Answer:
    """All lines of one request, by choice."""

    prompt_tokens: int = 0
    texts: dict[int, str] = field(default_factory=dict)
    tokens: dict[int, list[TokenChoice]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    last: Any = None

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens[0]]


@dataclass(frozen=True)
class World:
    """What all engines of a test share."""

    settings: Settings
    backbone: Backbone
    renderer: Renderer
    adapters: list[AdapterRef]
    store: Store


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    data = tmp_path_factory.mktemp("engine")
    settings = Settings(data_dir=data, base=BASE, engine=engine_settings())
    make_tiny_base(settings.base_folder, seed=1, initializer_range=0.15, num_hidden_layers=3)
    renderer = Renderer.load(settings.base_folder)
    write_manifest(settings.base_folder, id=BASE, shape={}, renderer_digest=renderer.digest)
    backbone = Backbone.load(settings.base_folder, dtype=torch.float32)
    store = Store(settings.store)
    adapters = [
        put_adapter(store, data / f"adapter-{i}", backbone=backbone, block=block, seed=i)
        for i, block in enumerate(BLOCKS)
    ]
    return World(settings, backbone, renderer, adapters, store)


def engine_settings(**changes: Any) -> EngineSettings:
    compute = ServingSettings(dtype="float32")
    return EngineSettings(**{"rows": 8, "context": 256, "compute": compute, **changes})


def put_adapter(
    store: Store,
    folder: Path,
    *,
    backbone: Backbone,
    block: dict[str, Any] | Method,
    seed: int,
    provenance: dict[str, Any] | None = None,
    spoil: Callable[[dict[str, torch.Tensor]], object] = lambda tensors: None,
    problem: "TinyProblem | None" = None,
) -> AdapterRef:
    """Store an adapter whose tensors are far from the identity."""
    method = block if isinstance(block, Method) else parse_method(block)
    tensors = random_tensors(method, backbone, seed=seed)
    spoil(tensors)
    if problem is not None and "demonstrations" in method.sites:
        tensors, _ = method.search(tensors, problem, step=0, generator=torch.Generator())
    save_artifact(
        folder, method=method, tensors=tensors, base=backbone.base, provenance=provenance or {}
    )
    return AdapterRef(name=folder.name, digest=store.put_tree(folder))


@dataclass(frozen=True)
class TinyProblem:
    """A few rows, for what methods take from data before they begin."""

    renderer: Renderer
    backbone: Backbone
    pairs: tuple[Pair, ...] = tuple(
        Pair(f"{word} {index}", LABELS[index % 3]) for index, word in enumerate(["is it", "so"] * 3)
    )

    @property
    def base(self) -> Base:
        return self.backbone.base

    def text_features(self, texts: Sequence[str], pooling: Pooling) -> torch.Tensor:
        ids = [self.renderer.encode(text) for text in texts]
        lengths = tuple(map(len, ids))
        with torch.inference_mode():
            states = forward(self.backbone, [Part(torch.tensor([*chain(*ids)]), lengths)])
            return pool(states.hidden_td, lengths, pooling=pooling)

    def features(self, pooling: Pooling) -> torch.Tensor:
        return self.text_features([pair.prompt for pair in self.pairs], pooling)

    def encode(self, text: str) -> list[int]:
        return self.renderer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.renderer.decode(ids)

    def loss(self, t: Any, *, step: int) -> torch.Tensor:
        raise NotImplementedError

    def check(self) -> None:
        pass


@dataclass(frozen=True)
class Kind:
    """A stored adapter of one example of one method."""

    id: str
    method: Method
    adapter: AdapterRef
    form: str
    system: str | None


@pytest.fixture(scope="session")
def kinds(world: World) -> list[Kind]:
    """Every example of every method there is, trained by nothing but noise."""
    problem = TinyProblem(world.renderer, world.backbone)
    examples = [(cls, example) for cls in METHODS.values() for example in cls.examples]
    return [
        store_kind(world, cls(**example), problem=problem, number=number)
        for number, (cls, example) in enumerate(examples)
    ]


def store_kind(world: World, method: Method, *, problem: TinyProblem, number: int) -> Kind:
    name = f"{method.kind}-{number}"
    form, system = [("chat", None), ("completion", None), ("chat", "Be brief.")][number % 3]
    if not method.class_labels:
        method = method.adapt(problem, torch.Generator().manual_seed(number))
    adapter = put_adapter(
        world.store,
        world.settings.data_folder / name,
        backbone=world.backbone,
        block=method,
        seed=number,
        provenance={"prompt": {"format": form, "system": system}},
        problem=problem,
    )
    return Kind(name, method, adapter, form, system)


@pytest.fixture
def start_engine(world: World) -> Iterator[Callable[..., Engine]]:
    """Start engines with settings changed as told; they are closed after the test."""
    engines = []

    def start(store: Store | None = None, **changes: Any) -> Engine:
        settings = world.settings.model_copy(update={"engine": engine_settings(**changes)})
        engine = Engine(settings, store=store)
        engines.append(engine)
        engine.start()
        asyncio.run(until(lambda: engine.health()["ready"]))
        return engine

    yield start
    for engine in engines:
        engine.close()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    """Lists the rows and the steps of each call into C++ for rows that go on."""
    found: Taken = []
    go_on = NativeStep.go_on

    def noted(self: NativeStep, batch: Batch, **options: Any) -> Any:
        steps = go_on(self, batch, **options)
        found.append((len(batch.ids), len(steps)))
        return steps

    monkeypatch.setattr(NativeStep, "go_on", noted)
    return found


@pytest.fixture
def told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has readers told every token as it is drawn, however many they are."""
    monkeypatch.setattr(writer, "READER_SECONDS", 0.0)


async def until(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - a health report sets no event
            await asyncio.sleep(0.005)


def order(
    prompt: str | Sequence[int],
    *,
    adapter: AdapterRef | None = None,
    prediction: str | None = None,
    **sampling: Any,
) -> GenerateRequest:
    form = {"prompt": prompt} if isinstance(prompt, str) else {"prompt_ids": list(prompt)}
    return GenerateRequest(
        sampling={"temperature": 0, "max_tokens": 8, **sampling},
        adapter=adapter,
        prediction=prediction,
        **form,
    )


async def ask(engine: Engine, request: GenerateRequest, *, delay: float = 0.0) -> Answer:
    answer = Answer()
    await asyncio.sleep(delay)
    async for line in engine.generate(request):
        answer.last = line
        if isinstance(line, GenerateStart):
            answer.prompt_tokens = line.prompt_tokens
        if isinstance(line, GenerateDelta):
            answer.texts[line.index] = answer.texts.get(line.index, "") + line.text
            answer.tokens.setdefault(line.index, []).extend(line.tokens)
            if line.finish_reason:
                answer.reasons[line.index] = line.finish_reason
    return answer


def ask_all(engine: Engine, requests: Sequence[GenerateRequest], *, gap: float = 0.0) -> list[Any]:
    """Send requests at once, or `gap` seconds apart; errors come back in their places."""

    async def gather() -> list[Any]:
        asks = [ask(engine, request, delay=i * gap) for i, request in enumerate(requests)]
        return await asyncio.gather(*asks, return_exceptions=True)

    return asyncio.run(gather())
