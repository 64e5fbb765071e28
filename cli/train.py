"""`graftwork train` and `graftwork watch`: upload a data set, post a job, follow it."""

import json
from math import isfinite
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from cli.console import err, fail, out, tell_call
from cli.options import DEFAULT_URL, ApiKey, BaseUrl
from core.errors import InvalidRequest

Data = Annotated[
    Path,
    typer.Argument(
        exists=True, dir_okay=False, help="JSONL: chats, prompt/completion pairs, or text."
    ),
]
MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="As GET /v1/methods names it; default: as --model was trained, else lora.",
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", help="The method's own, e.g. rank=8; may be repeated."),
]
Epochs = Annotated[
    int | None, typer.Option(min=1, help="Passes over the data; default: by its size.")
]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Rows in one step; default: by the data's size.")
]
Multiplier = Annotated[
    float | None,
    typer.Option("--learning-rate-multiplier", help="Of the method's own rate; default: 1."),
]
Base = Annotated[str | None, typer.Option("--model", help="Default: the server's base model.")]
Suffix = Annotated[str | None, typer.Option(help="Goes into the new model's id.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Of all chance; default: drawn anew.")]
Validation = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="Rows to measure on, never trained."),
]
Watch = Annotated[bool, typer.Option("--watch", help="Stay and show how it goes.")]


def train(
    data: Data,
    method: MethodName = None,
    option: Options = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    multiplier: Multiplier = None,
    base: Base = None,
    suffix: Suffix = None,
    seed: Seed = None,
    validation: Validation = None,
    watching: Watch = False,
    base_url: BaseUrl = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Fine-tune a model on a file."""
    from cli.client import Client

    peft = parse_options(option or [])
    if method:
        peft = {"type": method, **peft}
    if multiplier is not None and not isfinite(multiplier):
        raise InvalidRequest(f"--learning-rate-multiplier {multiplier} is no finite number.")
    with Client(base_url, api_key=api_key) as client:
        body: dict[str, Any] = {
            "model": base or client.base_model(),
            "training_file": client.upload(data)["id"],
        }
        if peft:
            body["peft"] = peft
        if validation:
            body["validation_file"] = client.upload(validation)["id"]
        hyperparameters = {
            "n_epochs": epochs,
            "batch_size": batch_size,
            "learning_rate_multiplier": multiplier,
        }
        given = {name: value for name, value in hyperparameters.items() if value is not None}
        body["method"] = {"type": "supervised", "supervised": {"hyperparameters": given}}
        body |= {k: v for k, v in {"suffix": suffix, "seed": seed}.items() if v is not None}
        job = client.post("/fine_tuning/jobs", body)
    if watching:
        watch(job["id"], base_url=base_url, api_key=api_key)
        return
    err.print(f"The job was posted. Follow it with: graftwork watch {job['id']}", markup=False)
    out.print(job["id"], markup=False)


def watch(
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="ftjob-…")],
    base_url: BaseUrl = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Show how a job goes until it ends."""
    from cli.client import Client
    from cli.progress import follow

    with Client(base_url, api_key=api_key) as client:
        try:
            job = follow(client, job_id)
        except KeyboardInterrupt:
            err.print(f"\nThe job goes on. Watch again with: graftwork watch {job_id}")
            return
        name = job["fine_tuned_model"]
        card = client.get(f"/models/{quote(name)}") if name else None
    if job["status"] == "paused":
        out.print(f"{job_id} is paused.", markup=False)
    elif job["status"] != "succeeded" or not card:
        fail(f"{job_id} {job['status']}.")
    else:
        out.print(f"\n{name}", style="bold", markup=False)
        tell_call(name, method=card["graftwork"]["method"])


def parse_options(options: list[str], *, flag: str = "--option") -> dict[str, Any]:
    """Read `name=value` pairs given to a flag; values are JSON where they can be, else text."""
    parsed: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        name = name.strip()
        if not equals or not name:
            raise InvalidRequest(f"{flag} {option!r} is not of the form name=value.")
        if name in parsed:
            raise InvalidRequest(f"{flag} gives {name!r} twice.")
        if name == "type":
            raise InvalidRequest(f"{flag} {option!r}: the method is not an option of itself.")
        try:
            parsed[name] = json.loads(value, parse_float=_finite, parse_constant=_finite)
        except (ValueError, RecursionError):
            parsed[name] = value
        except OverflowError as error:
            raise InvalidRequest(f"{flag} {option!r} is no finite number.") from error
    return parsed


def _finite(text: str) -> float:
    if not isfinite(value := float(text)):
        raise OverflowError
    return value
