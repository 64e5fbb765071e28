from typing import Any

import httpx
import pytest
from openai import (
    BadRequestError,
    NotFoundError,
    OpenAI,
)

from tests.api.conftest import Stack, add_adapter, tenant_of, user


def test_a_chat_is_answered_by_the_base(stack: Stack, client: OpenAI) -> None:
    reply = client.chat.completions.create(model="tiny", messages=user("hello you"), seed=3)
    assert reply.choices[0].message.content == "[base] hello you"
    assert (reply.choices[0].finish_reason, reply.model) == ("stop", "tiny")
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.choices[0].logprobs is None
    asked = stack.engine.requests[-1]
    assert asked.adapter is None
    assert asked.sampling["seed"] == 3
    assert asked.sampling["temperature"] == 1.0


def test_a_tuned_name_is_answered_by_its_bytes(stack: Stack, client: OpenAI, key: str) -> None:
    tenant = tenant_of(stack, key)
    with stack.database.unit_of_work() as session:
        mine = add_adapter(session, tenant, digest="abcd".ljust(64, "0"))
        elsewhere = add_adapter(session, tenant, base="big")
        foreign = add_adapter(session, "somebody")
    reply = client.chat.completions.create(model=mine.name, messages=user("hi"))
    assert reply.choices[0].message.content == "[abcd] hi"
    assert stack.engine.requests[-1].adapter.digest == mine.digest
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(model=elsewhere.name, messages=user("hi"))
    assert refused.value.code == "base_not_served"
    for name in (foreign.name, "nothing"):
        with pytest.raises(NotFoundError) as missing:
            client.chat.completions.create(model=name, messages=user("hi"))
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")


def test_messages_are_passed_on_as_text(stack: Stack, client: OpenAI) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turns = [{"role": "developer", "content": "rules"}, *user(parts)]
    client.chat.completions.create(model="tiny", messages=turns)
    assert stack.engine.requests[-1].messages == [
        {"role": "system", "content": "rules"},
        {"role": "user", "content": "ab"},
    ]


@pytest.mark.parametrize("content", ["so it goes", [{"type": "text", "text": "so it goes"}]])
def test_a_prediction_is_passed_on_and_its_worth_comes_back(
    stack: Stack, client: OpenAI, content: Any
) -> None:
    reply = client.chat.completions.create(
        model="tiny", messages=user("hi"), prediction={"type": "content", "content": content}
    )
    assert stack.engine.requests[-1].prediction == "so it goes"
    details = reply.usage.completion_tokens_details
    assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (2, 1)
    plain = client.chat.completions.create(model="tiny", messages=user("hi"))
    assert stack.engine.requests[-1].prediction is None
    assert plain.usage.completion_tokens_details.accepted_prediction_tokens == 0


def test_only_chats_take_predictions(client: OpenAI) -> None:
    nothing, something = ({"prediction": given} for given in (None, {"type": "content"}))
    assert client.completions.create(model="tiny", prompt="hi", extra_body=nothing).choices
    with pytest.raises(BadRequestError) as refused:
        client.completions.create(model="tiny", prompt="hi", extra_body=something)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "prediction")


@pytest.mark.parametrize(
    ("prediction", "param"),
    [
        ({"type": "image", "content": "x"}, "prediction.type"),
        ({"type": "content"}, "prediction.content"),
        ({"type": "content", "content": 1}, "prediction.content"),
        ({"type": "content", "content": [{"type": "text"}]}, "prediction.content.0.text"),
        ({"type": "content", "content": [{"type": "image_url"}]}, "prediction.content.0"),
        ("so it goes", "prediction"),
    ],
)
def test_a_prediction_of_another_form_is_refused(
    client: OpenAI, prediction: Any, param: str
) -> None:
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=user("hi"), prediction=prediction)
    assert refused.value.param == param


def test_a_stream_has_roles_texts_reasons_and_usage(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny",
        messages=user("x y"),
        n=2,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant"] * 2
    for index in (0, 1):
        own = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == index]
        assert "".join(choice.delta.content or "" for choice in own) == "[base] x y"
        assert own[-1].finish_reason == "stop"
        assert all(choice.finish_reason is None for choice in own[:-1])
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 6)
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_on_the_wire(http: httpx.Client) -> None:
    body = {"model": "tiny", "messages": user("a"), "stream": True}
    response = http.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-1] == ""
    assert events[-2] == "data: [DONE]"
    assert all(event.startswith("data: {") for event in events[:-2])
    assert '"usage"' not in response.text
    with_usage = http.post(
        "/v1/chat/completions", json={**body, "stream_options": {"include_usage": True}}
    ).text.split("\n\n")
    assert '"usage":null' in with_usage[0]


def test_logprobs_have_their_bytes(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model="tiny", messages=user("ü"), logprobs=True, top_logprobs=2
    )
    first, second = reply.choices[0].logprobs.content
    assert (first.token, first.logprob) == ("[base]", -0.5)
    assert bytes(second.bytes).decode() == " ü"
    assert [top.logprob for top in first.top_logprobs] == [-0.5, -9999.0]
    stream = client.chat.completions.create(
        model="tiny", messages=user("ü"), logprobs=True, stream=True
    )
    tokens = [
        token.token
        for chunk in stream
        for token in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])
    ]
    assert tokens == ["[base]", " ü"]


def test_the_sampling_block_is_passed_on(stack: Stack, client: OpenAI) -> None:
    client.chat.completions.create(
        model="tiny",
        messages=user("a"),
        max_completion_tokens=7,
        temperature=0,
        top_p=0.5,
        stop=["x", "y"],
        extra_body={"min_tokens": 2, "ignore_eos": True},
    )
    sampling = stack.engine.requests[-1].sampling
    assert (sampling["max_tokens"], sampling["min_tokens"], sampling["ignore_eos"]) == (7, 2, True)
    assert (sampling["temperature"], sampling["top_p"]) == (0, 0.5)
    assert sampling["stop"] == ["x", "y"]


def test_a_nucleus_of_one_token_may_be_asked_for(stack: Stack, client: OpenAI) -> None:
    client.chat.completions.create(model="tiny", messages=user("a"), top_p=0)
    client.completions.create(model="tiny", prompt="a", top_p=0)
    assert [asked.sampling["top_p"] for asked in stack.engine.requests[-2:]] == [0, 0]


def test_what_asks_for_nothing_is_accepted(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model="tiny",
        messages=[*user("a"), {"role": "assistant", "content": "b", "tool_calls": None}],
        tools=[],
        tool_choice="none",
        parallel_tool_calls=False,
        frequency_penalty=0,
        presence_penalty=0.0,
        logit_bias={},
        response_format={"type": "text"},
        user="me",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        prompt_cache_key="x",
        safety_identifier="y",
        stop=[],
        n=None,
        temperature=None,
        max_tokens=None,
        extra_body={"functions": None, "top_k": -1, "stream_options": None},
    )
    assert reply.choices


@pytest.mark.parametrize(
    ("values", "code", "param"),
    [
        ({"tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
        ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
        ({"frequency_penalty": 0.5}, "unsupported_parameter", "frequency_penalty"),
        ({"logit_bias": {"1": 1}}, "unsupported_parameter", "logit_bias"),
        ({"store": True}, "unsupported_parameter", "store"),
        ({"temprature": 1}, "unknown_parameter", "temprature"),
        ({"n": 17}, "invalid_value", "n"),
        ({"n": 0}, "invalid_value", "n"),
        ({"n": 10**12}, "invalid_value", "n"),
        *(
            ({name: True}, "invalid_value", name)
            for name in ("n", "seed", "max_tokens", "max_completion_tokens", "temperature", "top_p")
        ),
        *(
            ({name: value}, "invalid_value", name)
            for name, value in (
                *(("n", "2"), ("seed", "7"), ("max_tokens", "3"), ("temperature", "0")),
                *(("top_p", "0.5"), ("stream", "false"), ("logprobs", "true")),
                *(("stream", 1), ("stream", 0.0), ("logprobs", 1), ("ignore_eos", 0)),
            )
        ),
        (
            {"stream_options": {"include_usage": "true"}},
            "invalid_value",
            "stream_options.include_usage",
        ),
        ({"logprobs": True, "top_logprobs": True}, "invalid_value", "top_logprobs"),
        ({"max_tokens": 100_000}, "invalid_value", "max_tokens"),
        ({"max_completion_tokens": 100_000}, "invalid_value", "max_completion_tokens"),
        ({"min_tokens": 100_000}, "invalid_value", "min_tokens"),
        ({"max_completion_tokens": 5, "max_tokens": 4}, "invalid_request", "max_tokens"),
        ({"min_tokens": 5, "max_tokens": 4}, "invalid_request", "min_tokens"),
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"top_p": -0.1}, "invalid_value", "top_p"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_completion_tokens": 0}, "invalid_value", "max_completion_tokens"),
        ({"stop": list("abcde")}, "invalid_value", "stop"),
        ({"stop": ""}, "invalid_value", "stop"),
        ({"top_logprobs": 2}, "invalid_request", "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "invalid_value", "top_logprobs"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": user("a") * 1025}, "invalid_value", "messages"),
        (
            {"messages": [{"role": "tool", "content": "a"}]},
            "unsupported_content",
            "messages.0.role",
        ),
        ({"messages": [{"role": "boss", "content": "a"}]}, "invalid_value", "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages.0.content"),
        (
            {"messages": user([{"type": "image_url", "image_url": {"url": "x"}}])},
            "unsupported_content",
            "messages.0.content.0",
        ),
        (
            {"messages": user([{"type": "text"}])},
            "missing_required_parameter",
            "messages.0.content.0.text",
        ),
        ({"stream_options": {"x": 1}}, "unknown_parameter", "stream_options.x"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    http: httpx.Client, values: dict, code: str, param: str
) -> None:
    body = {"model": "tiny", "messages": user("a"), **values}
    response = http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param), error


def test_a_context_too_long_names_what_was_sent(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refused:
        client.completions.create(model="tiny", prompt="refuse")
    assert refused.value.param == "prompt"
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=user("refuse"))
    assert refused.value.param == "messages"
