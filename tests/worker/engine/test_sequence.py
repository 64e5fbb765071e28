"""What a row says of itself before anything is computed."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from worker.engine.sequence import Choice, Excerpt, Footing
from worker.engine.text import TextStream

REQUEST = cast("Any", SimpleNamespace(adapter=None))


@pytest.mark.parametrize(
    ("options", "skippable"),
    [
        ({}, 9),
        ({"pooling": "last"}, 9),
        ({"pooling": "mean"}, 0),
        ({"scored": [(4, 1), (7, 1)]}, 4),
        ({"scored": [(9, 1)]}, 9),
    ],
)
def test_known_keys_replace_only_rows_that_nobody_reads(
    options: dict[str, Any], skippable: int
) -> None:
    excerpt = Excerpt(request=REQUEST, index=0, prompt=[1] * 10, **options)
    assert excerpt.skippable == skippable


def test_what_is_wiped_covers_prefix_prompt_and_answer() -> None:
    choice = Choice(
        request=REQUEST,
        index=0,
        prompt=[1] * 10,
        footing=Footing(rows=3),
        limit=5,
        seed=0,
        text=TextStream(bytes_of=lambda token: b""),
        generated=[2, 2],
    )
    assert choice.reach == 15
    assert Excerpt(request=REQUEST, index=0, prompt=[1], footing=Footing(rows=3)).reach == 4
