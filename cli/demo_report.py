"""Asks base and adapter the demo's unseen mails and prints their answers side by side."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from cli.client import JSON, Client
from cli.console import out
from cli.demo_score import score

SHOWN = 6
AT_ONCE = 8
PROGRAM = """\
from openai import OpenAI
client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="gw-...")  # of `graftwork serve`
file = client.files.create(file=open("train.jsonl", "rb"), purpose="fine-tune")
job = client.fine_tuning.jobs.create(model="{base}", training_file=file.id)
model = client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model  # once it has succeeded
task = {{"role": "system", "content": "..."}}  # that of the rows: ask as they do
client.chat.completions.create(model=model, messages=[task, {{"role": "user", "content": "..."}}])
"""


class Answers(NamedTuple):
    """One unseen mail, the record that is right, and what both models said."""

    mail: str
    expected: str
    base: str
    tuned: str


class Comparison(NamedTuple):
    """All answers and the mean score of either model."""

    answers: list[Answers]
    base_score: float
    tuned_score: float


def compare(client: Client, path: Path, *, base: str, tuned: str) -> Comparison:
    """Ask both models every row of a file, many at once: base and adapter share the steps."""
    rows = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    asked = [(model, row[:-1]) for row in rows for model in (base, tuned)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        said = list(pool.map(lambda question: _ask(client, *question), asked))
    answers = [
        Answers(row[-2]["content"], row[-1]["content"], said[2 * index], said[2 * index + 1])
        for index, row in enumerate(rows)
    ]
    return Comparison(
        answers,
        sum(score(one.base, one.expected) for one in answers) / len(answers),
        sum(score(one.tuned, one.expected) for one in answers) / len(answers),
    )


def print_comparison(comparison: Comparison, *, base: str, tuned: str) -> None:
    """Print some answers and both scores."""
    table = Table(box=box.SIMPLE, show_lines=True, padding=(0, 1), expand=True)
    table.add_column("mail that training never saw", ratio=3)
    table.add_column(f"base: {base}", ratio=3, overflow="fold")
    table.add_column(f"adapter: {tuned}", ratio=3, overflow="fold")
    for one in _spread(comparison.answers):
        table.add_row(*(_cell(text) for text in (one.mail, one.base, one.tuned)))
    width = None if out.is_terminal else max(out.width, 110)
    Console(width=width, highlight=False, emoji=False).print(table)
    count = len(comparison.answers)
    out.print(f"Fields right, over all {count} unseen mails:")
    out.print(f"  base     {comparison.base_score:6.1%}")
    out.print(f"  adapter  {comparison.tuned_score:6.1%}", style="bold")


def print_program(*, base: str) -> None:
    """Print the six lines of Python that do the same."""
    out.print("\nThe same from Python, with the openai package:\n")
    out.print(PROGRAM.format(base=base), markup=False)


def _ask(client: Client, model: str, messages: list[JSON]) -> str:
    return "".join(client.chat(model, messages, temperature=0, max_tokens=64)).strip()


def _spread(answers: list[Answers]) -> list[Answers]:
    step = max(1, len(answers) // SHOWN)
    return answers[::step][:SHOWN]


def _cell(text: str) -> str:
    from rich.markup import escape

    return escape(text if len(text) <= 200 else f"{text[:199]}…")
