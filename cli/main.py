"""The `graftwork` command; one module a command or group of commands."""

import typer

from cli import adapters, chat, compare, demo, doctor, keys, programs, pull, serve, train
from cli.console import Commands

app = typer.Typer(
    name="graftwork",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A fine-tuning API that you host yourself.",
)
app.command()(serve.serve)
app.command()(demo.demo)
app.command()(pull.pull)
app.command()(doctor.doctor)
app.add_typer(keys.app, name="keys")
app.command()(train.train)
app.command()(train.watch)
app.command()(compare.compare)
app.command()(chat.chat)
app.add_typer(adapters.app, name="adapters")
app.command(rich_help_panel="One program alone")(programs.api)
app.command(rich_help_panel="One program alone")(programs.worker)
app.command(rich_help_panel="One program alone")(programs.engine)
app.command(rich_help_panel="One program alone")(programs.migrate)
