import json

import pytest

from cli.demo import EXAMPLES
from cli.demo_score import score

EXPECTED = '{"topic": "refund", "product": "kettle", "urgency": "high"}'


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        (EXPECTED, 1.0),
        ('{"urgency":"high","product":"kettle","topic":"refund"}', 1.0),
        ('{"topic": "refund", "product": "tent", "urgency": "high"}', 2 / 3),
        ('{"topic": ["refund"]}', 0.0),
        ('["refund", "kettle", "high"]', 0.0),
        (f"Sure! {EXPECTED}", 0.0),
        ("refund", 0.0),
        ("", 0.0),
    ],
)
def test_score_is_the_share_of_right_fields(answer: str, share: float) -> None:
    assert score(answer, EXPECTED) == pytest.approx(share)


def _rows(name: str) -> list[list[dict[str, str]]]:
    lines = (EXAMPLES / name).read_text().splitlines()
    return [json.loads(line)["messages"] for line in lines]


def test_the_sample_data_is_sound_and_its_test_rows_are_unseen() -> None:
    train, test = _rows("train.jsonl"), _rows("test.jsonl")
    assert len(train) == 100
    assert len(test) == 15
    mails = [row[1]["content"] for row in train + test]
    assert len(set(mails)) == len(mails)
    assert len({row[0]["content"] for row in train + test}) == 1
    products = [
        {json.loads(row[2]["content"])["product"] for row in rows} for rows in (train, test)
    ]
    assert not products[0] & products[1]
    for _, mail, answer in train + test:
        record = json.loads(answer["content"])
        assert record["topic"] in {"refund", "delivery", "defect", "billing", "question"}
        assert record["urgency"] in {"low", "normal", "high"}
        assert record["product"] in mail["content"]
