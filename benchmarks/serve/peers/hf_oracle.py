"""The oracle of tokens: Hugging Face's network and PEFT's adapters in float32.

It judges greedy tokens by reading them: at each place, how far the token that was taken lies
behind the likeliest one, given the very same tokens before it.
Shapes: n rows, t tokens of prompt and answer, g generated tokens, V vocabulary.
"""

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
        behind: list[list[float]] = [[] for _ in order["prompts"]]
        noise: list[float] = []
        for name in dict.fromkeys(order["adapters"]):
            rows = [row for row, owner in enumerate(order["adapters"]) if owner == name]
            prompts = torch.tensor([order["prompts"][row] for row in rows])
            taken_ng = torch.tensor([order["tokens"][row] for row in rows])
            ids_nt = torch.cat([prompts, taken_ng], 1)
            folder = spec["adapters"][name] if name else None
            exact_ngv, rough_ngv = (
                read(network, ids_nt, folder=folder, answer=taken_ng.shape[1])
                for network in (exact, rough)
            )
            for row, gaps_g in zip(rows, shortfall(exact_ngv, taken_ng), strict=True):
                behind[row] = gaps_g.tolist()
            noise.append(float(shortfall(exact_ngv, rough_ngv.argmax(-1)).max()))
        return {"behind": behind, "noise": max(noise)}

    return answer


def round_outputs(network: torch.nn.Module) -> None:
    """Round what every module gives to bfloat16, where computing in it would take minutes."""

    def rounded(_module: object, _inputs: object, output: Any) -> Any:
        return output.bfloat16().float() if isinstance(output, Tensor) else output

    for module in network.modules():
        module.register_forward_hook(rounded)


def read(network: Any, ids_nt: Tensor, *, folder: str | None, answer: int) -> Tensor:
    """Return (n, g, V) float32: the logits at the places from which the answer was drawn."""
    adapted = PeftModel.from_pretrained(network, folder) if folder else network
    with torch.inference_mode():
        logits_ngv: Tensor = adapted(ids_nt[:, :-1], logits_to_keep=answer).logits.float()
    if folder:
        adapted.unload()
    return logits_ngv


def shortfall(logits_ngv: Tensor, tokens_ng: Tensor) -> Tensor:
    """Return (n, g): how far each token's logit lies below the largest."""
    taken_ng = logits_ngv.gather(-1, tokens_ng[..., None])[..., 0]
    return logits_ngv.amax(-1) - taken_ng


if __name__ == "__main__":
    answer_orders(load)
