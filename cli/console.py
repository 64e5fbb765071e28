"""Where the command line writes: results on standard output, the rest on standard error."""

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


class Commands(TyperGroup):
    """A group whose commands end with a sentence, not a traceback, on an error of ours."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; turn a `GraftworkError` into its message."""
        try:
            return super().invoke(ctx)
        except GraftworkError as error:
            fail(error.message)
