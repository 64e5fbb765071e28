"""Follows a job over HTTP: its events as lines, its steps as a bar (or as lines in a pipe)."""

import time
from collections.abc import Iterator
from math import inf
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from cli.client import JSON, Client
from cli.console import err

ENDED = ("succeeded", "failed", "cancelled", "paused")
POLL_SECONDS = 1.0
LINE_SECONDS = 10.0
STYLES = {"warn": "yellow", "error": "red"}


def follow(client: Client, job_id: str, *, patience: float = inf) -> JSON:
    """Show a job until it has ended or is paused, and return it; see `Client.poll`."""
    path = f"/fine_tuning/jobs/{job_id}"
    seen: set[str] = set()
    job = client.get(path)
    with _Display() as display:
        while True:
            for event in reversed(list(_new_events(client, path, seen=seen, patience=patience))):
                display.event(event)
            display.step(job)
            if job["status"] in ENDED:
                return job
            time.sleep(POLL_SECONDS)
            # Before its events, so that the last ones are not missed.
            job = client.poll(path, patience=patience)


def _new_events(client: Client, path: str, *, seen: set[str], patience: float) -> Iterator[JSON]:
    """Yield the events that were not seen before, newest first."""
    after: dict[str, Any] = {}
    while True:
        page = client.poll(f"{path}/events", patience=patience, limit=100, **after)
        for event in page["data"]:
            if event["id"] in seen:
                return
            seen.add(event["id"])
            yield event
        if not page["has_more"] or not page["data"]:
            return
        after = {"after": page["data"][-1]["id"]}


class _Display:
    """A bar that stays at the bottom of a terminal; elsewhere a line now and then."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        self._task = self._bar.add_task("waiting", total=None, facts="")
        self._loss: float | None = None
        self._problems: list[str] = []
        self._next_line = 0.0
        self._last_step = 0

    def __enter__(self) -> "_Display":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def event(self, event: JSON) -> None:
        """Print a message, less the problem it repeats; remember a metric."""
        data = event.get("data") or {}
        if event["type"] == "metrics":
            self._loss = data.get("train_loss", self._loss)
            return
        message = event["message"]
        for problem in self._problems:
            message = message.removesuffix(problem)
        if "line" in data:
            self._problems.append(f" First: l{message[1:]}")
        err.print(message, style=STYLES.get(event["level"]), markup=False)

    def step(self, job: JSON) -> None:
        """Show how far the job is."""
        details = job.get("graftwork") or {}
        step, total = details.get("step") or 0, details.get("total_steps")
        facts = describe(job, loss=self._loss)
        self._bar.update(
            self._task, description=job["status"], completed=step, total=total, facts=facts
        )
        quiet = err.is_terminal or step == self._last_step or time.monotonic() < self._next_line
        if not quiet or (not err.is_terminal and step == total and step != self._last_step):
            self._next_line = time.monotonic() + LINE_SECONDS
            self._last_step = step
            err.print(f"step {step}/{total}  {facts}", markup=False)


def describe(job: JSON, *, loss: float | None) -> str:
    """Return loss, speed and remaining time in words."""
    details = job.get("graftwork") or {}
    words = [] if loss is None else [f"loss {loss:.3f}"]
    if speed := details.get("tokens_per_second"):
        words.append(f"{speed:.0f} tokens/s")
    if (eta := details.get("eta_seconds")) and job["status"] == "running":
        minutes, seconds = divmod(round(eta), 60)
        words.append(f"ETA {minutes}:{seconds:02d}")
    return "  ".join(words)
