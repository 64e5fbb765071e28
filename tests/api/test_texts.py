"""`/v1/completions`: one or many prompts, as texts or as token ids."""

from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI

from tests.api.conftest import Stack


def test_text_completions_of_many_prompts(stack: Stack, client: OpenAI) -> None:
    reply = client.completions.create(model="tiny", prompt=["a", "b c"], n=2, logprobs=1)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in reply.choices] == ["[base] a"] * 2 + ["[base] b c"] * 2
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (6, 10)
    logprobs = reply.choices[2].logprobs
    assert logprobs.tokens == ["[base]", " b", " c"]
    assert logprobs.text_offset == [0, 6, 8]
    assert logprobs.token_logprobs == [-0.5] * 3
    assert logprobs.top_logprobs[0]["[base]"] == -0.5
    assert stack.engine.requests[-1].sampling["max_tokens"] == 16


def test_text_completions_stream(client: OpenAI) -> None:
    stream = client.completions.create(
        model="tiny",
        prompt=["a", "b"],
        stream=True,
        logprobs=0,
        stream_options={"include_usage": True},
    )
    texts, offsets = {0: "", 1: ""}, {0: [], 1: []}
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            offsets[choice.index] += choice.logprobs.text_offset
        usage = chunk.usage
    assert texts == {0: "[base] a", 1: "[base] b"}
    assert offsets[0] == [0, 6]
    assert usage.completion_tokens == 4


def test_token_ids_are_prompts_too(stack: Stack, client: OpenAI) -> None:
    client.completions.create(model="tiny", prompt=[5, 6], echo=True, logprobs=2, max_tokens=1)
    asked = stack.engine.requests[-1]
    assert (asked.prompt, asked.prompt_ids) == (None, [5, 6])
    assert (asked.sampling["echo"], asked.sampling["top_logprobs"]) == (True, 2)
    reply = client.completions.create(model="tiny", prompt=[[1], [2, 3]])
    assert [choice.text for choice in reply.choices] == ["[base] 1", "[base] 2 3"]


def test_a_prompt_may_be_asked_for_without_an_answer(stack: Stack, client: OpenAI) -> None:
    client.completions.create(model="tiny", prompt=[5, 6], echo=True, logprobs=1, max_tokens=0)
    assert stack.engine.requests[-1].sampling["max_tokens"] == 0


def test_no_prompt_is_an_empty_one(stack: Stack, client: OpenAI) -> None:
    client.completions.create(model="tiny", prompt=None, top_p=None)
    assert stack.engine.requests[-1].prompt == ""
    with pytest.raises(BadRequestError) as refused:
        client.post("/completions", body={"model": "tiny"}, cast_to=object)
    assert refused.value.code == "missing_required_parameter"


@pytest.mark.parametrize(
    "prompt",
    [
        *([], [[]], ["a"] * 129, [-1], [1, "a"], {"a": 1}, [2**40], [["a"]]),
        *([1, True], [True, 1], [[1], [False]], [1, "2"], [[1], ["2"]]),
    ],
)
def test_bad_prompts_are_refused(http: httpx.Client, prompt: Any) -> None:
    response = http.post("/v1/completions", json={"model": "tiny", "prompt": prompt})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("prompt")


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"n": "2"}, "a number, not text"),
        ({"n": True}, "a number, not true or false"),
        ({"echo": "false"}, "true or false, not text"),
        ({"echo": 1}, "true or false, not a number"),
    ],
)
def test_what_is_wanted_is_told_where_something_else_is_given(
    http: httpx.Client, values: dict[str, Any], wanted: str
) -> None:
    response = http.post("/v1/completions", json={"model": "tiny", "prompt": "2", **values})
    assert response.status_code == 400
    assert f"'{next(iter(values))}': give {wanted}" in response.json()["error"]["message"]


def test_a_whole_number_may_have_a_point(stack: Stack, http: httpx.Client) -> None:
    body = {"model": "tiny", "prompt": ["2", "true"], "max_tokens": 2.0, "temperature": 0}
    assert http.post("/v1/completions", json=body).status_code == 200
    assert stack.engine.requests[-1].sampling["max_tokens"] == 2


def test_too_many_prompts_are_told_the_bound(http: httpx.Client) -> None:
    response = http.post("/v1/completions", json={"model": "tiny", "prompt": ["a"] * 129})
    error = response.json()["error"]
    assert error["param"] == "prompt"
    assert "at most 128 prompts" in error["message"]


def test_of_token_ids_the_first_that_cannot_be_is_told(http: httpx.Client) -> None:
    response = http.post("/v1/completions", json={"model": "tiny", "prompt": [1, -1] * 40_000})
    error = response.json()["error"]
    assert error["param"] == "prompt.1"
    assert len(error["message"]) < 160


def test_offsets_count_a_split_character_once_and_control_tokens_never(client: OpenAI) -> None:
    reply = client.completions.create(model="tiny", prompt="split", logprobs=0)
    assert reply.choices[0].text == "ü[base] split"
    assert reply.choices[0].logprobs.text_offset == [0, 0, 1, 1, 7]
    assert reply.choices[0].logprobs.tokens[:3] == ["bytes:\\xc3", "bytes:\\xbc", "<|end|>"]


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_drawn_is_among_the_alternatives(client: OpenAI, stream: bool) -> None:
    """The first three tokens come with none."""
    reply = client.completions.create(model="tiny", prompt="split", logprobs=2, stream=stream)
    logprobs = [chunk.choices[0].logprobs for chunk in (reply if stream else [reply])]
    assert [top for part in logprobs for top in part.top_logprobs] == [
        *({name: -0.5} for name in ("bytes:\\xc3", "bytes:\\xbc", "<|end|>")),
        *({name: -0.5, "no": -9999.0} for name in ("[base]", " split")),
    ]


def test_prompts_times_choices_are_bounded(http: httpx.Client) -> None:
    body = {"model": "tiny", "prompt": ["a"] * 20, "n": 10}
    response = http.post("/v1/completions", json=body)
    assert response.json()["error"]["param"] == "n"
