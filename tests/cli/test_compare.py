"""`graftwork compare`: what it posts and what it prints."""

from typing import Any

import pytest
from rich.console import Console

from cli.compare import parse_methods
from cli.compare_report import make_table, print_table
from core.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("all", "all"),
        ("lora", [{"type": "lora"}]),
        (
            "lora:rank=8:use_rslora=true, ia3",
            [{"type": "lora", "rank": 8, "use_rslora": True}, {"type": "ia3"}],
        ),
        (
            "lora:target_modules=q_proj+v_proj:alpha=1e+1,ia3:target_modules=k_proj+",
            [
                {"type": "lora", "target_modules": ["q_proj", "v_proj"], "alpha": 10.0},
                {"type": "ia3", "target_modules": ["k_proj"]},
            ],
        ),
    ],
)
def test_methods_are_kinds_with_options(text: str, blocks: Any) -> None:
    assert parse_methods(text) == blocks


@pytest.mark.parametrize(
    "options", ["alpha=NaN", "alpha=-Infinity", "rank=1e400", "rank=2:rank=3", "type=ia3"]
)
def test_options_that_mean_nothing_are_refused(options: str) -> None:
    with pytest.raises(InvalidRequest, match=options.partition("=")[0]):
        parse_methods(f"lora:{options}")


def test_an_option_without_a_value_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="--methods 'rank'"):
        parse_methods("lora:rank")


def row(label: str, **values: Any) -> dict[str, Any]:
    return {
        "label": label,
        "job": label,
        "model": f"ft:tiny:{label}",
        "status": "done",
        "error": None,
        "quality": {"value": 0.8125, "low": 0.75, "high": 0.875},
        "loss": 0.51234,
        "parameters": 4884480,
        "artifact_bytes": 19_600_000,
        "trained_tokens": 12000,
        "seconds": 48.4,
        "tokens_per_second": 251.7,
        "peak_bytes": 1_200_000_000,
        "serving_overhead": 1.187,
    } | values


def shown(*rows: dict[str, Any], metric: str) -> str:
    console = Console(width=140, record=True)
    result = {"metric": metric, "rows": list(rows), "pareto": []}
    console.print(make_table({"model": "tiny", "budget": {"tokens": 12000}, "result": result}))
    return console.export_text()


def test_the_table_has_every_figure() -> None:
    text = shown(row("lora"), metric="accuracy")
    assert "tiny: accuracy, 12,000 tokens each" in text
    for figure in (
        "81.2%", "75.0% to 87.5%", "0.512", "4.88 M", "19.6 MB", "252", "1.2 GB", "48 s", "1.19 x",
    ):  # fmt: skip
        assert figure in text


def test_a_pipe_gets_the_models_ids_and_the_front(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("lora"), row("ia3 wide"), row("gone", model=None, quality=None, error="Deleted.")]
    result = {"metric": "accuracy", "rows": rows, "pareto": ["lora"]}
    print_table({"model": "tiny", "budget": {"tokens": 12000}, "result": result})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines if line.lstrip().startswith("*")] == [
        ["*", "lora"],
        ["*", "Pareto"],
    ]
    assert lines[-4:] == [
        "Models:",
        "  lora      ft:tiny:lora",
        "  ia3 wide  ft:tiny:ia3 wide",
        "gone: Deleted.",
    ]


def test_rows_without_figures_say_how_they_are() -> None:
    nothing = dict.fromkeys(
        ("quality", "loss", "seconds", "tokens_per_second", "peak_bytes", "serving_overhead")
    )
    text = shown(
        row("waiting", status="running", **nothing),
        row("a classifier", status="not_applicable", **nothing),
        metric="bleu",
    )
    assert "running" in text
    assert "not applicable" in text
