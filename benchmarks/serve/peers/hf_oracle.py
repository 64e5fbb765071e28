"""The oracle of tokens: Hugging Face's network and PEFT's adapters in float32.

It judges greedy tokens by reading them: at each place, how far the token that was taken lies
behind the likeliest one, given the very same tokens before it.
Shapes: n rows, p tokens of prompt, g generated ones, t of both, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.serve.peers.peer import Answer, Peer, answer_orders
from benchmarks.sides import JSON

PEER = Peer(
    name="oracle",
    module="benchmarks.serve.peers.hf_oracle",
    packages=("peft", "transformers", "torch"),
    variables={"HF_HUB_OFFLINE": "1"},
)
TOGETHER = 16
"""Rows that are read at once: their logits in float32 take 12.6 MB each."""


def load(spec: JSON) -> Answer:
    """Load the base twice, in float32 and in bfloat16; adapters are read when they are needed."""
    exact, rough = (
        AutoModelForCausalLM.from_pretrained(spec["base"], dtype=dtype).eval()
        for dtype in (torch.float32, getattr(torch, spec["dtype"]))
    )
    if rough.dtype is torch.float32:
        round_outputs(rough)

    def answer(order: JSON) -> JSON:
        """Judge `tokens`, the answers to `prompts` under `adapters`."""
        rows_of: dict[str | None, list[int]] = defaultdict(list)
        for row, name in enumerate(order["adapters"]):
            rows_of[name].append(row)
        said: dict[int, tuple[list[float], list[float]]] = {}
        for name, rows in rows_of.items():
            folder = spec["adapters"][name] if name else None
            with adapted(exact, folder) as exactly, adapted(rough, folder) as roughly:
                for first in range(0, len(rows), TOGETHER):
                    own = rows[first : first + TOGETHER]
                    prompts_np, taken_ng = (
                        torch.tensor([order[what][row] for row in own])
                        for what in ("prompts", "tokens")
                    )
                    verdicts = judge(exactly, roughly, prompts_np, taken_ng)
                    said |= zip(own, verdicts, strict=True)
        behind, noise = zip(*(said[row] for row in range(len(said))), strict=True)
        return {"behind": behind, "noise": noise}

    return answer


def round_outputs(network: torch.nn.Module) -> None:
    """Round what every module gives to bfloat16, where computing in it would take minutes."""

    def rounded(_module: object, _inputs: object, output: Any) -> Any:
        return output.bfloat16().float() if isinstance(output, Tensor) else output

    for module in network.modules():
        module.register_forward_hook(rounded)


@contextmanager
def adapted(network: Any, folder: str | None) -> Iterator[Any]:
    """Give a network the adapter of a folder, if there is one, for as long as the block lasts."""
    if folder is None:
        yield network
        return
    wrapped = PeftModel.from_pretrained(network, folder)
    try:
        yield wrapped
    finally:
        wrapped.unload()


def judge(
    exact: Any, rough: Any, prompts_np: Tensor, taken_ng: Tensor
) -> list[tuple[list[float], list[float]]]:
    """Return for each row how far its tokens lie behind, and how far `rough`'s choices do."""
    ids_nt = torch.cat([prompts_np, taken_ng], 1)
    exact_ngv, rough_ngv = (
        read(network, ids_nt, answer=taken_ng.shape[1]) for network in (exact, rough)
    )
    behind = shortfall(exact_ngv, taken_ng).tolist()
    noise = shortfall(exact_ngv, rough_ngv.argmax(-1)).tolist()
    return list(zip(behind, noise, strict=True))


def read(network: Any, ids_nt: Tensor, *, answer: int) -> Tensor:
    """Return (n, g, V) float32: the logits at the places from which the answer was drawn."""
    with torch.inference_mode():
        logits_ngv: Tensor = network(ids_nt[:, :-1], logits_to_keep=answer).logits.float()
    return logits_ngv


def shortfall(logits_ngv: Tensor, tokens_ng: Tensor) -> Tensor:
    """Return (n, g): how far each token's logit lies below the largest."""
    taken_ng = logits_ngv.gather(-1, tokens_ng[..., None])[..., 0]
    return logits_ngv.amax(-1) - taken_ng


if __name__ == "__main__":
    answer_orders(load)
