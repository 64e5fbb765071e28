"""What `graftwork serve` says once everything is ready."""

import re
from typing import TYPE_CHECKING

from cli.console import out

if TYPE_CHECKING:
    from core.broker import Broker
    from core.settings import Settings

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def hide_password(url: str) -> str:
    """Return a URL that may be shown."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", url)


def print_banner(settings: "Settings", *, address: str, broker: "Broker", key: str | None) -> None:
    """Print where everything is, the first key if it is new, and what to do next."""
    words = broker.description
    if settings.broker_url:
        words = f"{hide_password(settings.broker_url)} ({words})"
    facts = {
        "API": f"{address}/v1",
        "Base model": settings.base,
        "Data": str(settings.data_folder),
        "Database": hide_password(settings.database),
        "Broker": words,
        "Logs": f"{settings.data_folder / 'logs'}/",
    }
    out.print("\nGraftwork is ready.\n", style="bold")
    for name, value in facts.items():
        out.print(f"  {name:<12}{value}", markup=False)
    if key:
        out.print("\nYour first API key, for tenant default. It is shown only now:\n")
        out.print(f"  {key}", style="bold", markup=False)
    if settings.host not in LOOPBACK:
        out.print("\nOther machines can reach this, in plain HTTP: put a TLS proxy in front.")
    out.print(
        f"\n  export GRAFTWORK_API_KEY={key or '…'} GRAFTWORK_BASE_URL={address}/v1\n"
        "  graftwork train data.jsonl --suffix first --watch\n"
        "  graftwork chat\n",
        markup=False,
    )
    out.print("Ctrl-C stops everything.", style="dim")
