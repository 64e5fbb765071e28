"""`graftwork adapters`: bring an adapter in as files, take one away as a zip."""

import re
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from cli.console import Commands, err, fail, out, tell_call
from cli.options import DEFAULT_URL, ApiKey, BaseUrl
from core.errors import InvalidRequest
from models.adapter_files import NAMES, TENSORS

if TYPE_CHECKING:
    from cli.client import Refused

app = typer.Typer(cls=Commands, no_args_is_help=True, help="Import and export adapters.")

SHOWN = 5


@app.command("import")
def import_adapter(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER_OR_ZIP",
            exists=True,
            help="What PEFT's save_pretrained wrote, or an export.",
        ),
    ],
    suffix: Annotated[str | None, typer.Option(help="Goes into the new model's id.")] = None,
    base_url: BaseUrl = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Make an adapter that was trained elsewhere callable here."""
    from cli.client import Client, Refused

    with tempfile.TemporaryDirectory(prefix="graftwork-") as scratch:
        path = _zip(source, Path(scratch)) if source.is_dir() else source
        with Client(base_url, api_key=api_key) as client:
            try:
                made = client.send("/adapters", path, {"suffix": suffix} if suffix else {})
            except Refused as refusal:
                fail(_explain(refusal))
    report = made["report"]
    for warning in report["warnings"]:
        err.print(f"Warning: {warning}", style="yellow", markup=False)
    fits = f"{len(report['matched'])} tensors fit, {report['parameters']:,} parameters"
    err.print(f"{report['method']['type']}: {fits}.", markup=False)
    out.print(made["id"], markup=False)
    tell_call(made["id"], method=report["method"])


@app.command("export")
def export_adapter(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="ft:…, a checkpoint's id too.")],
    file: Annotated[
        Path | None, typer.Argument(dir_okay=False, help="Default: a zip named after the model.")
    ] = None,
    base_url: BaseUrl = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Write an adapter with its model card into a zip."""
    from cli.client import Client

    target = file or Path(re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") + ".zip")
    with Client(base_url, api_key=api_key) as client:
        client.download(f"/adapters/{quote(name)}/download", target)
    err.print(f"{target.stat().st_size:,} bytes", markup=False)
    out.print(str(target), markup=False)


def _zip(folder: Path, scratch: Path) -> Path:
    """Pack the files of an adapter, and nothing else that lies beside them."""
    if not (folder / TENSORS).is_file():
        raise InvalidRequest(
            f"There is no {TENSORS} in {folder}. Pickled adapters are not taken: load it with PEFT "
            "and save it by save_pretrained(folder, safe_serialization=True)."
        )
    target = scratch / f"{folder.resolve().name}.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as packed:
        for name in NAMES:
            if (folder / name).is_file():
                packed.write(folder / name, name)
    return target


def _explain(refusal: "Refused") -> str:
    """Say in lines what the api found in an adapter that does not fit."""
    report = refusal.answer.get("report") or {}
    lines = [refusal.message]
    for what in ("missing", "unexpected", "mismatched"):
        names = report.get(what) or []
        lines += [f"  {what}: {name}" for name in names[:SHOWN]]
        if len(names) > SHOWN:
            lines.append(f"  {what}: {len(names) - SHOWN} more")
    return "\n".join(lines)
