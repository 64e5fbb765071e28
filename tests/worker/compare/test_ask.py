"""How long an answer may be."""

import pytest

from tests.tiny import make_tokenizer
from worker.compare.ask import longest_answer
from worker.compare.questions import Question


@pytest.mark.parametrize(
    "answer", ["yes", "東京都は日本の首都です。", "31415926535897932384626433"]
)
def test_the_longest_right_answer_has_room_in_any_script(answer: str) -> None:
    questions = [Question("?", (answer,)), Question("!", ("no", "maybe"))]
    assert len(make_tokenizer().encode(answer)) < longest_answer(questions)
