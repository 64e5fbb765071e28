"""How texts resemble each other by their words."""

import pytest

from models.nn.similarity import WordIndex


@pytest.mark.parametrize("text", ["", "?!", "zebra"])
def test_a_text_without_words_or_with_others_resembles_none(text: str) -> None:
    assert WordIndex(["a cat", "a dog"]).scores(text).tolist() == [0.0, 0.0]


def test_a_text_resembles_those_that_have_its_words() -> None:
    cat, dog = WordIndex(["a cat", "a dog"]).scores("That dog!").tolist()
    assert cat == 0.0 < dog
