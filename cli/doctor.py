"""`graftwork doctor`: what this machine and data directory are like, and what to do about it."""

from typing import TYPE_CHECKING

import typer

from cli.console import out
from cli.environment import DataDir, Host, Port, configure

if TYPE_CHECKING:
    from cli.checks import Finding

STYLES = {"ok": "green", "note": "yellow", "wrong": "red"}


def doctor(data_dir: DataDir = None, host: Host = None, port: Port = None) -> None:
    """Check everything that an installation needs; exit code 1 if something is wrong."""
    settings = configure(data_dir=data_dir, host=host, port=port)
    from cli.checks import CHECKS

    wrong = 0
    for name, check in CHECKS.items():
        finding = check(settings)
        _print(name, finding)
        wrong += finding.state == "wrong"
    if wrong:
        out.print(f"\n{wrong} to put right.")
        raise typer.Exit(1)
    out.print("\nNothing is wrong.")


def _print(name: str, finding: "Finding") -> None:
    out.print(f"{finding.state:<7}", style=STYLES[finding.state], end="")
    out.print(f"{name:<10}{finding.text}", markup=False)
    if finding.advice:
        out.print(f"{'':<17}-> {finding.advice}", markup=False)
