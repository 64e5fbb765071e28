"""Jobs that tests post."""

from typing import Any

import pytest
from openai import APIStatusError, OpenAI


def create(client: OpenAI, training_file: str, **values: Any) -> Any:
    return client.fine_tuning.jobs.create(
        **{"model": "tiny", "training_file": training_file} | values
    )


def refused(client: OpenAI, training: str, **values: Any) -> APIStatusError:
    with pytest.raises(APIStatusError) as error:
        create(client, training, **values)
    return error.value
