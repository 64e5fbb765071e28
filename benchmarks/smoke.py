"""`python -m benchmarks.smoke`: how fast the embedded base trains and answers on this machine.

Measured through a whole installation, as a user meets it: one epoch of LoRA on the sample data,
then greedy answers of 64 tokens, one at a time and many at once, from the base and the adapter.
"""

import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.record import gather
from cli.client import Client
from cli.demo import EXAMPLES
from cli.progress import follow
from cli.temporary import installation

TOKENS = 64
AT_ONCE = 16
QUESTION = [{"role": "user", "content": "Tell me a long story about a kettle that went to sea."}]
TRAINING = {
    "seed": 7,
    "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}},
    "peft": {"type": "lora", "rank": 16},
}


def main() -> None:
    """Measure, and print one JSON object on standard output."""
    with (
        tempfile.TemporaryDirectory(prefix="graftwork-bench-") as folder,
        installation(Path(folder)) as (url, key),
        Client(url, api_key=key) as client,
    ):
        base = client.base_model()
        file = client.upload(EXAMPLES / "train.jsonl")
        job = client.post(
            "/fine_tuning/jobs", {"model": base, "training_file": file["id"], **TRAINING}
        )
        job = follow(client, job["id"], patience=0)
        if job["status"] != "succeeded":
            sys.exit(f"The job {job['status']}: {job['error']}")
        result = {
            **gather(),
            "base": base,
            "train": {
                "tokens_per_second": job["graftwork"]["tokens_per_second"],
                "trained_tokens": job["trained_tokens"],
            },
            "decode_tokens_per_second": {
                name: {str(count): measure(client, model, count) for count in (1, AT_ONCE)}
                for name, model in (("base", base), ("adapter", job["fine_tuned_model"]))
            },
        }
    print(json.dumps(result, indent=2))


def measure(client: Client, model: str, count: int) -> float:
    """Return generated tokens a second, all requests together, after one request to warm up."""
    generate(client, model)
    began = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        tokens = sum(pool.map(lambda _: generate(client, model), range(count)))
    return round(tokens / (time.perf_counter() - began), 1)


def generate(client: Client, model: str) -> int:
    """Ask once, greedily; return how many tokens came."""
    body = {"model": model, "messages": QUESTION, "max_tokens": TOKENS, "temperature": 0}
    tokens: int = client.post("/chat/completions", body)["usage"]["completion_tokens"]
    return tokens


if __name__ == "__main__":
    main()
