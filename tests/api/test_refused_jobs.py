"""Jobs that cannot be: the parameter at fault is named before anything is queued."""

import pytest
from openai import OpenAI

from tests.api.jobs import refused


@pytest.mark.parametrize(
    ("values", "code", "param"),
    [
        ({"extra_body": {"peft": {"type": "lora", "rnk": 1}}}, "unknown_parameter", "peft.rnk"),
        ({"extra_body": {"peft": {"rank": 0}}}, "invalid_value", "peft.rank"),
        ({"extra_body": {"peft": {"type": "magic"}}}, "unknown_method", "peft.type"),
        ({"extra_body": {"peft": {"type": ["lora"]}}}, "unknown_method", "peft.type"),
        ({"extra_body": {"peft": []}}, "invalid_value", "peft"),
        (
            {"extra_body": {"peft": {"target_modules": ["nowhere"]}}},
            "invalid_value",
            "peft.target_modules",
        ),
        (
            {"extra_body": {"peft": {"type": "ia3", "feedforward_modules": ["nowhere"]}}},
            "invalid_value",
            "peft.feedforward_modules",
        ),
        (
            {"extra_body": {"peft": {"type": "head", "labels": ["one"]}}},
            "invalid_value",
            "peft.labels",
        ),
        ({"extra_body": {"training": {"lr": 1}}}, "unknown_parameter", "training.lr"),
        ({"extra_body": {"tenant": "x"}}, "unknown_parameter", "tenant"),
        ({"extra_body": {"state": "succeeded"}}, "unknown_parameter", "state"),
        (
            {"extra_body": {"training": {"learning_rate": 99}}},
            "invalid_value",
            "training.learning_rate",
        ),
        *(
            ({"extra_body": {"training": {name: value}}}, "invalid_value", f"training.{name}")
            for name, value in (
                ("max_grad_norm", "inf"),
                ("max_seconds", "inf"),
                ("max_seconds", 1e308),
                ("max_tokens", 10**13),
                ("max_tokens", True),
                ("max_tokens", "9"),
                ("learning_rate", "0.1"),
                ("weight_decay", False),
                ("micro_batch_tokens", 2**20 + 1),
            )
        ),
        (
            {"extra_body": {"peft": {"type": "prefix", "prefix_length": 2047}}},
            "context_length_exceeded",
            "peft",
        ),
        ({"hyperparameters": {"n_epochs": "many"}}, "invalid_value", "hyperparameters.n_epochs"),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"beta": 1}}}},
            "unknown_parameter",
            "method.supervised.hyperparameters.beta",
        ),
        ({"method": {"type": "dpo", "dpo": {}}}, "unsupported_method", "method.type"),
        ({"method": {"type": "reinforcement"}}, "unsupported_method", "method.type"),
        ({"method": {"type": "other"}}, "invalid_value", "method.type"),
        ({"integrations": [{"type": "wandb"}]}, "unsupported_parameter", "integrations"),
        ({"suffix": "a b"}, "invalid_value", "suffix"),
        ({"suffix": "../x"}, "invalid_value", "suffix"),
        ({"suffix": "a\n"}, "invalid_value", "suffix"),
        ({"suffix": "x" * 65}, "invalid_value", "suffix"),
        ({"seed": -1}, "invalid_value", "seed"),
        ({"seed": True}, "invalid_value", "seed"),
        ({"seed": "7"}, "invalid_value", "seed"),
        ({"hyperparameters": {"n_epochs": True}}, "invalid_value", "hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": "3"}}, "invalid_value", "hyperparameters.n_epochs"),
        *(
            (
                {"extra_body": {"peft": {"type": "lora", name: value}}},
                "invalid_value",
                f"peft.{name}",
            )
            for name, value in (
                *(("rank", "8"), ("rank", True), ("alpha", "16"), ("dropout", "0")),
                *(("use_rslora", "true"), ("use_rslora", 1), ("learning_rate_ratio", True)),
            )
        ),
        (
            {
                "method": {
                    "type": "supervised",
                    "supervised": {"hyperparameters": {"batch_size": True}},
                }
            },
            "invalid_value",
            "method.supervised.hyperparameters.batch_size",
        ),
        ({"seed": 2**40}, "invalid_value", "seed"),
        ({"metadata": {"k" * 65: "v"}}, "invalid_value", "metadata." + "k" * 64),
        ({"metadata": {"k": "v" * 513}}, "invalid_value", "metadata.k"),
        ({"metadata": {str(i): "v" for i in range(17)}}, "invalid_value", "metadata"),
        ({"model": "other"}, "model_not_found", "model"),
        ({"training": "file-none"}, "file_not_found", "training_file"),
        ({"validation_file": "file-none"}, "file_not_found", "validation_file"),
        ({"training": ""}, "invalid_value", "training_file"),
    ],
)
def test_a_refusal_names_the_parameter(
    client: OpenAI, training_file: str, values: dict, code: str, param: str
) -> None:
    error = refused(client, **{"training": training_file, **values})
    assert error.status_code in (400, 404)
    assert (error.code, error.param) == (code, param)
    assert "Value error" not in error.message
    assert error.response.headers["x-should-retry"] == "false"


def test_hyperparameters_are_given_once(client: OpenAI, training_file: str) -> None:
    block = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}}
    error = refused(client, training_file, method=block, hyperparameters={"n_epochs": 2})
    assert error.param == "hyperparameters"


def test_a_file_for_something_else_is_refused(client: OpenAI) -> None:
    other = client.files.create(file=("a", b"x"), purpose="batch").id
    error = refused(client, other)
    assert (error.code, error.param) == ("invalid_file_purpose", "training_file")
