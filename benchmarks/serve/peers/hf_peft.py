"""Hugging Face PEFT: `generate` over a mixed batch, an adapter's name for each row."""

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.serve.peers.peer import Answer, Peer, answer_orders, timed
from benchmarks.sides import JSON

PEER = Peer(
    name="peft",
    module="benchmarks.serve.peers.hf_peft",
    packages=("peft", "transformers", "torch"),
    variables={"HF_HUB_OFFLINE": "1"},
)
BASE = "__base__"
"""What PEFT calls a row without adapter."""


def load(spec: JSON) -> Answer:
    """Load the base and all adapters."""
    dtype = getattr(torch, spec["dtype"])
    network = AutoModelForCausalLM.from_pretrained(spec["base"], dtype=dtype).eval()
    network.generation_config.eos_token_id = None  # or it stands in where ours says None
    for name, folder in spec["adapters"].items():
        if isinstance(network, PeftModel):
            network.load_adapter(folder, adapter_name=name)
        else:
            network = PeftModel.from_pretrained(network, folder, adapter_name=name)

    def answer(order: JSON) -> JSON:
        ids_nt = torch.tensor(order["prompts"])
        named = [name or BASE for name in order["adapters"]]

        def run() -> list[list[int]]:
            with torch.inference_mode():
                given = network.generate(
                    input_ids=ids_nt,
                    attention_mask=torch.ones_like(ids_nt),
                    adapter_names=named,
                    generation_config=greedy(order["tokens"]),
                )
            rows: list[list[int]] = given[:, ids_nt.shape[1] :].tolist()
            return rows

        return timed(run)

    return answer


def greedy(tokens: int) -> GenerationConfig:
    """Return the configuration that gives so many tokens whatever they are: no token ends a row."""
    return GenerationConfig(
        do_sample=False, max_new_tokens=tokens, eos_token_id=None, pad_token_id=0
    )


if __name__ == "__main__":
    answer_orders(load)
