"""`graftwork demo`: the whole loop on a sample data set, in a directory that is gone afterwards."""

import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from cli import programs
from cli.console import err, fail
from cli.environment import configure
from cli.supervise import kill_group, tail
from core.process import child_environment, start_child

EXAMPLES = Path(__file__).parent.parent / "examples" / "support_mail"
READY_SECONDS = 300.0
STOP_SECONDS = 60.0
TRAINING = {
    "suffix": "support-mail",
    "seed": 7,
    "method": {
        "type": "supervised",
        "supervised": {
            "hyperparameters": {"n_epochs": 4, "batch_size": 4, "learning_rate_multiplier": 5}
        },
    },
    "peft": {"type": "lora", "rank": 16},
}


def demo() -> None:
    """Train an adapter on sample mails and compare it with the base, from start to end."""
    if not EXAMPLES.is_dir():
        fail("The sample data set comes with the repository: run this in a clone of it.")
    with tempfile.TemporaryDirectory(prefix="graftwork-demo-") as folder:
        won = _run(Path(folder))
    if not won:
        fail("The adapter did not beat the base.")


def _run(folder: Path) -> bool:
    from cli.client import Client
    from cli.demo_report import compare, print_comparison, print_program
    from cli.progress import follow

    configure(data_dir=folder)
    _pull()
    key = f"gw-{secrets.token_urlsafe(24)}"
    with _serve(folder, key=key) as url, Client(url, api_key=key) as client:
        err.print(f"\nGraftwork serves at {url}. Posting a LoRA job on {EXAMPLES.name} …")
        base = client.base_model()
        began = time.monotonic()
        uploaded = client.upload(EXAMPLES / "train.jsonl")
        job = client.post(
            "/fine_tuning/jobs", {"model": base, "training_file": uploaded["id"], **TRAINING}
        )
        job = follow(client, job["id"])
        if job["status"] != "succeeded":
            fail(f"The job {job['status']}.")
        err.print(f"Trained in {time.monotonic() - began:.0f} s. Asking base and adapter …\n")
        tuned = job["fine_tuned_model"]
        comparison = compare(client, EXAMPLES / "test.jsonl", base=base, tuned=tuned)
        print_comparison(comparison, base=base, tuned=tuned)
        print_program(base=base)
    return comparison.tuned_score > comparison.base_score


def _pull() -> None:
    """Fetch the base through the cache that all data directories share; shows its own progress."""
    done = subprocess.run(
        [sys.executable, "-m", "cli", "pull"],
        env=child_environment(programs.environment()),
        check=False,
    )
    if done.returncode != 0:
        raise typer.Exit(done.returncode)


@contextmanager
def _serve(folder: Path, *, key: str) -> Iterator[str]:
    """Run `graftwork serve` on a free port and yield its URL; it is gone afterwards."""
    log = folder / "serve.log"
    port = _free_port()
    command = [sys.executable, "-m", "cli", "serve", "--data-dir", str(folder)]
    child = start_child(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        environment={**programs.environment(), "GRAFTWORK_BOOTSTRAP_KEY": key},
        log=log,
    )
    try:
        with err.status("Starting database, broker, engine, worker and api …"):
            _wait_until_ready(child, url=f"http://127.0.0.1:{port}", log=log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            err.print("`graftwork serve` did not stop in time; killing it.")
        kill_group(child)
        child.wait()


def _wait_until_ready(child: subprocess.Popen[bytes], *, url: str, log: Path) -> None:
    import httpx

    deadline = time.monotonic() + READY_SECONDS
    while child.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readyz", timeout=5.0, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.3)
    err.print(tail(log, lines=40), markup=False, style="dim")
    fail("`graftwork serve` did not become ready; its last words are above.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
