"""Options that several commands share."""

from typing import Annotated

import typer

BaseUrl = Annotated[
    str, typer.Option(envvar="GRAFTWORK_BASE_URL", help="Where the api is, with /v1.")
]
DEFAULT_URL = "http://127.0.0.1:8000/v1"
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="GRAFTWORK_API_KEY",
        help="As `serve` or `keys create` showed it.",
        show_default=False,
    ),
]
