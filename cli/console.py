"""Where the command line writes: results on standard output, the rest on standard error."""

from collections.abc import Mapping
from typing import Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from core.errors import GraftworkError

out = Console(highlight=False, emoji=False, soft_wrap=True)
err = Console(highlight=False, emoji=False, soft_wrap=True, stderr=True)


def fail(message: str) -> NoReturn:
    """Say what went wrong and what to do, and end with exit code 1."""
    err.print(f"Error: {message}", style="red", markup=False)
    raise typer.Exit(1)


def tell_call(name: str, *, method: Mapping[str, Any]) -> None:
    """Say how a model is called: one whose method has labels classifies, others write."""
    if method.get("labels"):
        err.print(f'Call it with: POST /v1/classifications, "model": "{name}"', markup=False)
    else:
        err.print(f'Call it with: graftwork chat "{name}"', markup=False)


class Commands(TyperGroup):
    """A group whose commands end with a sentence, not a traceback, on an error of ours."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; turn a `GraftworkError` into its message."""
        try:
            return super().invoke(ctx)
        except GraftworkError as error:
            fail(error.message)
