"""Going on from adapters of every kind, and what the kinds say of themselves."""

from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI

from models.nn.methods import METHODS, parse_method
from tests.api.conftest import SHAPE, Stack, add_adapter, tenant_of

LABELS = ("ham", "maybe", "spam")


@pytest.fixture
def tenant(stack: Stack, key: str) -> str:
    return tenant_of(stack, key)


def stored(kind: str) -> dict[str, Any]:
    """Return a method as a finished job stores it: every value resolved, labels included."""
    method = parse_method({"type": kind})
    if method.class_labels is not None:
        method = method.model_copy(update={"labels": LABELS})
    return method.model_dump(mode="json")


def go_on(client: OpenAI, model: str, file: str, **peft: Any) -> dict[str, Any]:
    extra = {"peft": peft} if peft else {}
    made = client.fine_tuning.jobs.create(model=model, training_file=file, extra_body=extra)
    shown: dict[str, Any] = made.model_extra["peft"]
    return shown


@pytest.mark.parametrize("kind", METHODS)
def test_every_kind_goes_on_as_it_was(
    stack: Stack, client: OpenAI, tenant: str, training_file: str, kind: str
) -> None:
    method = stored(kind)
    with stack.database.unit_of_work() as session:
        parent = add_adapter(session, tenant, method=method).name
    assert go_on(client, parent, training_file) == method
    assert go_on(client, parent, training_file, type=kind) == method
    other = "ia3" if kind != "ia3" else "lora"
    with pytest.raises(BadRequestError) as refused:
        go_on(client, parent, training_file, type=other)
    assert refused.value.code == "incompatible_parent"


def test_what_is_left_out_is_the_parents_and_what_is_given_counts(
    stack: Stack, client: OpenAI, tenant: str, training_file: str
) -> None:
    method = {**stored("lora"), "rank": 3}
    with stack.database.unit_of_work() as session:
        parent = add_adapter(session, tenant, method=method).name
    softer = go_on(client, parent, training_file, type="lora", dropout=0.5)
    assert softer == {**method, "dropout": 0.5}
    with pytest.raises(BadRequestError) as refused:
        go_on(client, parent, training_file, type="lora", rank=4)
    assert refused.value.code == "incompatible_parent"


@pytest.mark.parametrize("kind", ["feature_based", "head"])
def test_a_classifier_keeps_its_labels(
    stack: Stack, client: OpenAI, tenant: str, training_file: str, kind: str
) -> None:
    with stack.database.unit_of_work() as session:
        parent = add_adapter(session, tenant, method=stored(kind)).name
    assert go_on(client, parent, training_file, type=kind, labels=LABELS[::-1])
    with pytest.raises(BadRequestError, match="from the base") as refused:
        go_on(client, parent, training_file, type=kind, labels=["x", "y", "z"])
    assert (refused.value.code, refused.value.param) == ("incompatible_parent", "peft.labels")


def test_every_kind_has_a_card(http: httpx.Client) -> None:
    cards = {card["type"]: card for card in http.get("/v1/methods").json()["data"]}
    assert list(cards) == list(METHODS)
    for kind, card in cards.items():
        assert card["description"]
        assert card["schema"]["properties"]["type"]["const"] == kind
        assert card["parameters"] == parse_method({"type": kind}).parameters(SHAPE)
        assert card["shares_batch"] is METHODS[kind].shares_batch
    assert cards["in_context"]["parameters"] == 0
    assert cards["full"]["shares_batch"] is False
    assert {kind for kind, card in cards.items() if card["objective"] == "classification"} == {
        "feature_based", "head",
    }  # fmt: skip
    assert (cards["ia3"]["peft_type"], cards["bottleneck"]["peft_type"]) == ("IA3", None)
    assert (cards["lora"]["starts_as_base"], cards["soft_prompt"]["starts_as_base"]) == (
        True, False,
    )  # fmt: skip


def test_what_only_data_decide_is_decided_anew(
    stack: Stack, client: OpenAI, tenant: str, training_file: str
) -> None:
    shown = [{"prompt": "a", "answer": "b"}]
    for chosen in (
        {"chosen": shown},
        {"pool": shown, "selection": "nearest", "scope": "per_request"},
    ):
        method = {**stored("in_context"), "k": 1, **chosen}
        with stack.database.unit_of_work() as session:
            parent = add_adapter(session, tenant, method=method).name
        assert go_on(client, parent, training_file) == {**method, "chosen": [], "pool": []}
        assert go_on(client, parent, training_file, type="in_context", k=2)["k"] == 2
