"""`graftwork chat`: talk to a model in the terminal."""

import sys
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import err, out
from cli.options import DEFAULT_URL, ApiKey, BaseUrl
from core.errors import GraftworkError

if TYPE_CHECKING:
    from cli.client import Client

HELP = "/models lists models, /model ID changes to one, /reset forgets, /quit ends"


def chat(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Default: the server's base model.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Ask this once and end.")] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.0,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of one answer; default: what the context leaves.")
    ] = None,
    base_url: BaseUrl = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Chat with the base or a tuned model; answers stream."""
    from cli.client import Client

    sampling: dict[str, Any] = {"temperature": temperature}
    if max_tokens is not None:
        sampling["max_tokens"] = max_tokens
    with Client(base_url, api_key=api_key) as client:
        name = model or client.base_model()
        talk = _Talk(client, model=name, system=system, sampling=sampling)
        if prompt is not None:
            talk.say(prompt)
            return
        err.print(f"{name}\n{HELP}", style="dim", markup=False)
        _converse(talk)


class _Talk:
    """One conversation: what was said so far, and with whom."""

    def __init__(
        self, client: "Client", *, model: str, system: str | None, sampling: dict[str, Any]
    ) -> None:
        self._client = client
        self._sampling = sampling
        self._start = [{"role": "system", "content": _sound(system)}] if system else []
        self._messages = list(self._start)
        self.model = model

    def say(self, text: str) -> None:
        """Send a line and print the answer as it comes; a failed turn is forgotten."""
        turn = [*self._messages, {"role": "user", "content": _sound(text)}]
        pieces: list[str] = []
        try:
            for piece in self._client.chat(self.model, turn, **self._sampling):
                pieces.append(piece)
                out.print(piece, end="", markup=False)
        finally:
            out.print()
        self._messages = [*turn, {"role": "assistant", "content": "".join(pieces)}]

    def reset(self) -> None:
        """Forget everything but the system message."""
        self._messages = list(self._start)

    def list_models(self) -> None:
        """Print the ids that can be called."""
        for entry in self._client.get("/models")["data"]:
            mark = "*" if entry["id"] == self.model else " "
            out.print(f"{mark} {entry['id']}", markup=False)


def _sound(text: str) -> str:
    """Put a sign for each byte that is not UTF-8, as Python hands on what was typed."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _converse(talk: _Talk) -> None:
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            out.print()
            return
        command, _, argument = line.partition(" ")
        try:
            if command == "/quit":
                return
            if command == "/models":
                talk.list_models()
            elif command == "/model" and argument:
                talk.model = _sound(argument.strip())
            elif command == "/reset":
                talk.reset()
            elif command.startswith("/"):
                err.print(HELP, style="dim", markup=False)
            elif line:
                talk.say(line)
        except KeyboardInterrupt:
            err.print("Stopped.", style="dim")
        except GraftworkError as error:
            err.print(error.message, style="red", markup=False)
