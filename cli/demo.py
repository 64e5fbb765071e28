"""`graftwork demo`: the whole loop on a sample data set, in a directory that is gone afterwards."""

import signal
import tempfile
import time
from pathlib import Path

from cli.console import err, fail

EXAMPLES = Path(__file__).parent.parent / "examples" / "support_mail"
TRAINING = {
    "suffix": "support-mail",
    "seed": 7,
    "method": {
        "type": "supervised",
        "supervised": {
            "hyperparameters": {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 2.5}
        },
    },
    "peft": {"type": "lora", "rank": 16},
}


def demo() -> None:
    """Train an adapter on sample mails and compare it with the base, from start to end."""
    if not EXAMPLES.is_dir():
        fail("The sample data set comes with the repository: run this in a clone of it.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it too cleans up
    with tempfile.TemporaryDirectory(prefix="graftwork-demo-") as folder:
        won = _run(Path(folder))
    if not won:
        fail("The adapter did not beat the base.")


def _run(folder: Path) -> bool:
    from cli.client import Client
    from cli.demo_report import compare, print_comparison, print_program
    from cli.progress import follow
    from cli.temporary import installation

    with installation(folder) as (url, key), Client(url, api_key=key) as client:
        err.print(f"\nGraftwork serves at {url}. Posting a LoRA job on {EXAMPLES.name} …")
        base = client.base_model()
        began = time.monotonic()
        uploaded = client.upload(EXAMPLES / "train.jsonl")
        job = client.post(
            "/fine_tuning/jobs", {"model": base, "training_file": uploaded["id"], **TRAINING}
        )
        job = follow(client, job["id"], patience=0)
        if job["status"] != "succeeded":
            fail(f"The job {job['status']}.")
        err.print(f"Trained in {time.monotonic() - began:.0f} s. Asking base and adapter …\n")
        tuned = job["fine_tuned_model"]
        comparison = compare(client, EXAMPLES / "test.jsonl", base=base, tuned=tuned)
        print_comparison(comparison, base=base, tuned=tuned)
        print_program(base=base)
    return comparison.tuned_score > comparison.base_score
