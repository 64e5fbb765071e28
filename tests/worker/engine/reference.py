"""What an adapter gives by the forward without a cache, one sequence at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.nn.artifact import load_artifact
from models.nn.demonstrations import show_before_text, show_in_chat
from models.nn.forward import Part, States, forward
from models.nn.head import class_logits, pool
from models.nn.methods.base import Method
from models.nn.problem import Pair
from models.nn.terms import Pooling, Terms
from models.wire import AdapterRef
from tests.worker.engine.conftest import World


@dataclass(frozen=True)
class Question:
    """A request as methods see it."""

    alone: "Alone"
    text: str

    def features(self, pooling: Pooling) -> Tensor:
        return Alone(self.alone.world, None).pooled(self.alone.encode(self.text), pooling=pooling)


class Alone:
    """One adapter, or the base."""

    def __init__(self, world: World, adapter: AdapterRef | None) -> None:
        self.world = world
        self.method: Method | None = None
        self.terms, self.tensors = Terms(), dict[str, Tensor]()
        if adapter is not None:
            folder = world.settings.data_folder / adapter.name
            artifact = load_artifact(folder, shape=world.backbone.shape)
            self.method, self.tensors = artifact.method, artifact.tensors
            self.terms = Terms.of(artifact.method, artifact.tensors, world.backbone.base)

    def encode(self, text: str) -> list[int]:
        return self.world.renderer.encode(text)

    def pairs(self, text: str) -> Sequence[Pair]:
        if self.method is None:
            return ()
        fixed = self.method.demonstrations(self.tensors, None)
        return fixed or self.method.demonstrations(self.tensors, Question(self, text))

    def prompt(self, ids: list[int]) -> list[int]:
        pairs = self.pairs(self.world.renderer.decode(ids))
        return show_before_text(pairs, self.world.renderer) + ids

    def chat(self, messages: list[dict[str, Any]]) -> list[Any]:
        return show_in_chat(self.pairs(messages[-1]["content"]), messages)

    def states(self, ids: list[int]) -> States:
        with torch.inference_mode():
            part = Part(torch.tensor(ids), (len(ids),), self.terms)
            return forward(self.world.backbone, [part])

    def logprobs(self, ids: list[int]) -> Tensor:
        """Return (T, V) after each token."""
        states = self.states(ids)
        with torch.inference_mode():
            return F.log_softmax(states.logits(states.hidden_td, torch.arange(len(ids))), -1)

    def greedy(self, ids: list[int], *, tokens: int) -> tuple[list[int], list[float]]:
        ids, start, logprobs = self.prompt(ids), len(self.prompt(ids)), []
        for _ in range(tokens):
            last_v = self.logprobs(ids)[-1]
            ids = [*ids, int(last_v.argmax())]
            logprobs.append(float(last_v.max()))
        return ids[start:], logprobs

    def pooled(self, ids: list[int], *, pooling: Pooling) -> Tensor:
        with torch.inference_mode():
            return pool(self.states(ids).hidden_td, [len(ids)], pooling=pooling)[0]

    def class_scores(self, ids: list[int]) -> list[float]:
        head = self.terms.head
        assert head is not None
        pooled_1d = self.pooled(ids, pooling=head.pooling)[None]
        scores: list[float] = class_logits(pooled_1d, head=head)[0].softmax(-1).tolist()
        return scores

    def label_scores(self, examples: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """Return probabilities of answers, each given as prompt and the tokens after it."""
        totals = []
        for prompt, answer in examples:
            logprobs_tv = self.logprobs([*prompt, *answer])[len(prompt) - 1 : -1]
            totals.append(logprobs_tv[range(len(answer)), answer].sum())
        scores: list[float] = torch.stack(totals).softmax(-1).tolist()
        return scores
