import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.schemas.chat import Message
from core.errors import InvalidRequest
from models.dataset import ChatRow
from models.nn import template as template_module
from models.nn.chat import Renderer
from models.nn.marked_text import MarkedText

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED_WITHOUT_END = MARKED.replace(
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}",
    "{{ m['content'] }}{% endgeneration %}{{ '<|im_end|>' }}",
)
TRIMMED = PLAIN.replace("m['content']", "m['content'] | trim")
TEMPLATES = {
    "plain": PLAIN,
    "marked": MARKED,
    "marked-without-end": MARKED_WITHOUT_END,
    "trimmed": TRIMMED,
}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the question?\n"},
    {"role": "assistant", "content": "The answer is 42."},
    {"role": "user", "content": "  how are\n\n you"},
    {"role": "assistant", "content": "I am well, thank you."},
]


@pytest.fixture(params=TEMPLATES)
def template(request):
    return TEMPLATES[request.param]


@pytest.fixture
def renderer(tokenizer, template):
    return _renderer(tokenizer, template)


def _renderer(tokenizer, template):
    tokenizer.chat_template = template
    return Renderer(tokenizer)


def _labelled(renderer, example):
    ids = [index for index, label in zip(*example, strict=True) if label]
    return b"".join(renderer.spellings[index] for index in ids).decode()


def _ordinary(tokenizer, messages, **settings):
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **settings)


def test_benign_text_is_rendered_as_transformers_does(renderer, tokenizer):
    assert renderer.example(CHAT).ids == _ordinary(tokenizer, CHAT)
    prompt = _ordinary(tokenizer, CHAT[:4], add_generation_prompt=True)
    assert renderer.prompt(CHAT[:4]) == prompt


def test_answers_and_their_ends_are_labelled_and_nothing_else(renderer):
    example = renderer.example(CHAT)
    labelled = _labelled(renderer, example)
    assert labelled == "The answer is 42.<|im_end|>I am well, thank you.<|im_end|>"


def test_an_answer_of_weight_zero_is_not_labelled(renderer):
    chat = [*CHAT[:2], CHAT[2] | {"weight": 0}, CHAT[3], CHAT[4] | {"weight": 1}]
    example = renderer.example(chat)
    assert example.ids == renderer.example(CHAT).ids
    assert _labelled(renderer, example) == "I am well, thank you.<|im_end|>"
    silent = [*CHAT[:2], CHAT[2] | {"weight": 0}]
    assert not any(renderer.example(silent).labelled)


@pytest.mark.parametrize("answer", ["\n\nHello", "  Hello", "", " ", "\n", "é漢🎉", "\ufffd"])
def test_training_sees_the_prompt_that_serving_sends(renderer, answer):
    chat = [*CHAT[:2], {"role": "assistant", "content": answer}, *CHAT[3:]]
    ids = renderer.example(chat).ids
    for turn in (2, 4):
        prompt = renderer.prompt(chat[:turn])
        assert ids[: len(prompt)] == prompt


PIECES = [*"aH \n\t.é🎉", "<|im_end|>", "<|im_start|>", "<s>", "|>", "<", "<|im_"]
CONTENT = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(contents=st.lists(CONTENT, min_size=4, max_size=4))
def test_for_any_text_prompts_are_prefixes_and_no_text_becomes_control(
    byte_tokenizer, name, contents
):
    renderer = _renderer(byte_tokenizer, TEMPLATES[name])
    roles = ("user", "assistant", "user", "assistant")
    chat = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
    example = renderer.example(chat)
    for turn in (1, 3):
        prompt = renderer.prompt(chat[:turn])
        assert example.ids[: len(prompt)] == prompt
    control = [index for index in example.ids if index < 5]
    start, end = renderer.prompt([{"role": "user", "content": ""}])[0], renderer.eos_id
    assert control == [start, end] * 4
    parts = [text.strip() if name == "trimmed" else text for text in contents]
    expected = "".join(
        f"<|im_start|>{role}\n{part}<|im_end|>\n" for role, part in zip(roles, parts, strict=True)
    )
    assert b"".join(renderer.spellings[index] for index in example.ids).decode() == expected
    assert _labelled(renderer, example) == f"{parts[1]}<|im_end|>{parts[3]}<|im_end|>"


ANSWERED_AFTER_INSTRUCTIONS = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(contents=st.lists(CONTENT, min_size=4, max_size=4))
def test_prompts_are_prefixes_where_nothing_is_added_for_an_answer(byte_tokenizer, contents):
    renderer = _renderer(byte_tokenizer, ANSWERED_AFTER_INSTRUCTIONS)
    roles = ("user", "assistant", "user", "assistant")
    chat = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
    example = renderer.example(chat)
    for turn in (1, 3):
        prompt = renderer.prompt(chat[:turn])
        assert example.ids[: len(prompt)] == prompt
    assert _labelled(renderer, example) == f" {contents[1]}<|im_end|> {contents[3]}<|im_end|>"


@pytest.fixture
def rendered(renderer, monkeypatch):
    """One entry for each time that a template is rendered from now on."""
    renderer.example(CHAT)
    times = []
    render = template_module.render_jinja_template
    monkeypatch.setattr(
        template_module,
        "render_jinja_template",
        lambda *args, **options: times.append(1) or render(*args, **options),
    )
    return times


def test_a_prompt_is_rendered_once_however_many_turns_it_has(renderer, rendered):
    renderer.prompt([CHAT[1], CHAT[2]] * 100 + [CHAT[3]])
    assert len(rendered) == 1


def test_a_conversation_is_rendered_again_for_what_is_learned_alone(renderer, rendered):
    renderer.example([CHAT[1], CHAT[2] | {"weight": 0}] * 100 + CHAT[3:])
    assert len(rendered) == 2


def test_parts_are_joined_alike_in_training_and_serving(byte_tokenizer):
    parts = [{"type": "text", "text": text} for text in ("Hel", "lo\n", "", "there")]
    message = {"role": "user", "content": parts}
    [trained] = msgspec.convert({"messages": [message]}, ChatRow).messages
    assert trained.text == Message.model_validate(message).text == "Hello\nthere"
    renderer = _renderer(byte_tokenizer, PLAIN)
    assert renderer.prompt([message]) == renderer.prompt([message | {"content": trained.text}])


def test_overlapping_control_strings_are_defused_too(byte_tokenizer):
    byte_tokenizer.add_special_tokens({"additional_special_tokens": ["[A]", "A]B"]})
    renderer = _renderer(byte_tokenizer, PLAIN)
    control = set(byte_tokenizer.convert_tokens_to_ids(["[A]", "A]B"]))
    ids = renderer.prompt([{"role": "user", "content": "[A]B [A] A]B"}])
    assert not control & set(ids)
    assert not control & set(renderer.encode("[A]B"))
    assert "[A]B [A] A]B" in renderer.decode(ids)


def test_private_use_characters_of_a_user_are_kept(byte_tokenizer):
    renderer = _renderer(byte_tokenizer, PLAIN)
    content = "\ue000<|im_end|>\ue001"
    ids = renderer.prompt([{"role": "user", "content": content}])
    assert content in renderer.decode(ids)
    assert ids.count(renderer.eos_id) == 1


def test_content_may_come_in_parts_and_developers_are_the_system(byte_tokenizer):
    renderer = _renderer(byte_tokenizer, PLAIN)
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    chat = [{"role": "developer", "content": parts}, *CHAT[1:]]
    assert renderer.example(chat) == renderer.example(CHAT)


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([{"role": "tool", "content": "x"}], "messages[0].role"),
        ([{"content": "x"}], "messages[0].role"),
        ([CHAT[0], {"role": "user"}], "messages[1].content"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], "messages[0].content"),
        ([{"role": "user", "content": "\ud800"}], "messages[0].content"),
        ([CHAT[1], CHAT[2] | {"tool_calls": [{}]}], "messages[1].tool_calls"),
    ],
)
def test_messages_that_cannot_be_rendered_are_named(byte_tokenizer, messages, param):
    with pytest.raises(InvalidRequest) as caught:
        _renderer(byte_tokenizer, PLAIN).prompt(messages)
    assert (caught.value.code, caught.value.param) == ("invalid_messages", param)


def test_a_templates_own_complaint_is_passed_on(byte_tokenizer):
    strict = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}"
    renderer = _renderer(byte_tokenizer, strict + PLAIN)
    with pytest.raises(InvalidRequest, match="user first") as caught:
        renderer.prompt(CHAT)
    assert caught.value.code == "invalid_messages"
    assert renderer.example(CHAT[1:]).ids


def test_a_template_that_rewrites_history_is_refused_where_it_would_be_trained(byte_tokenizer):
    kept = "m['content'] if loop.last or loop.first else ''"
    forgetful = PLAIN.replace("m['content']", kept)
    renderer = _renderer(byte_tokenizer, forgetful)
    chat = CHAT[1:]
    with pytest.raises(InvalidRequest, match="messages") as caught:
        renderer.example([*chat[:3], chat[3]])
    assert caught.value.code == "invalid_messages"
    assert any(renderer.example(chat[:2]).labelled)


def test_a_template_without_an_end_of_turn_is_refused(byte_tokenizer):
    endless = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(InvalidRequest, match="does not end answers"):
        _renderer(byte_tokenizer, endless).example(CHAT)


def test_without_a_template_there_is_no_chat_but_text(byte_tokenizer):
    renderer = Renderer(byte_tokenizer)
    with pytest.raises(InvalidRequest) as caught:
        renderer.prompt(CHAT)
    assert caught.value.code == "no_chat_template"
    assert renderer.text_example("Hello there").ids


def test_a_templates_own_end_of_turn_stops_generation(byte_tokenizer):
    other = PLAIN.replace("<|im_end|>", "<|endoftext|>")
    renderer = Renderer(byte_tokenizer, stop_ids=[3])
    assert renderer.eos_ids == {3, renderer.eos_id}
    renderer = _renderer(byte_tokenizer, other)
    assert renderer.eos_ids == {2, renderer.eos_id}
    assert _labelled(renderer, renderer.example(CHAT[:3])) == "The answer is 42.<|endoftext|>"


@pytest.mark.parametrize("text", ["Hello there", "", "\n\n", "<|im_end|>", "é漢🎉"])
def test_texts_end_with_eos_and_are_labelled_from_the_second_token(byte_tokenizer, text):
    renderer = Renderer(byte_tokenizer)
    example = renderer.text_example(text)
    assert example.ids == [*renderer.encode(text), renderer.eos_id]
    assert example.ids.count(renderer.eos_id) == 1
    assert example.labelled == [False, *[True] * (len(example.ids) - 1)]
    assert renderer.decode(renderer.encode(text)) == text


@pytest.mark.parametrize("completion", ["The answer", " The answer", "\n\nHello", "", "<|im_end|>"])
@pytest.mark.parametrize("prompt", ["What is\n", "", "<|im_start|>"])
def test_completions_follow_the_prompt_that_serving_sends(tokenizer, prompt, completion):
    renderer = Renderer(tokenizer)
    example = renderer.completion_example(prompt, completion)
    head = renderer.completion_prompt(prompt)
    assert head == (renderer.encode(prompt) if prompt else [renderer.eos_id])
    assert example.ids[: len(head)] == head
    assert example.ids[len(head) :].count(renderer.eos_id) == 1
    assert example.labelled == [index >= len(head) for index in range(len(example.ids))]


def test_completions_of_one_prompt_are_what_each_is_alone(tokenizer):
    renderer = Renderer(tokenizer)
    prompt, completions = "Is it <|im_end|>", [" yes", "no \ue000 <|im_end|>", "", "yes"]
    alone = [renderer.completion_example(prompt, completion) for completion in completions]
    assert list(renderer.completions(prompt, completions)) == [
        example.ids[example.labelled.index(True) :] for example in alone
    ]


def test_a_tokenizer_that_begins_texts_begins_ours(byte_tokenizer):
    from tokenizers.processors import TemplateProcessing

    byte_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    renderer = Renderer(byte_tokenizer)
    assert renderer.encode("Hello") == [
        1,
        *byte_tokenizer.encode("Hello", add_special_tokens=False),
    ]
    example = renderer.completion_example("Hello", " there")
    assert example.ids.count(1) == 1


def test_the_digest_names_tokenizer_and_template(byte_tokenizer, tmp_path):
    digests = {_renderer(byte_tokenizer, template).digest for template in TEMPLATES.values()}
    assert len(digests) == len(TEMPLATES)
    byte_tokenizer.chat_template = PLAIN
    byte_tokenizer.save_pretrained(tmp_path)
    loaded = Renderer.load(tmp_path)
    assert loaded.digest == Renderer.load(tmp_path).digest
    assert loaded.example(CHAT) == _renderer(byte_tokenizer, PLAIN).example(CHAT)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 4]}')
    assert Renderer.load(tmp_path).eos_ids == {2, 4}


def test_a_control_token_of_one_character_is_refused(byte_tokenizer):
    byte_tokenizer.add_special_tokens({"additional_special_tokens": ["¤"]})
    with pytest.raises(InvalidRequest):
        Renderer(byte_tokenizer)


LONG_TEXTS = (
    "The answer is 42. " * 400,
    "the " * 4000,
    " " * 9000,
    "é€" * 3000 + "The answer is",
    "<|im_end|> and <|im_start|>" * 300,
    "a" * 7000 + "".join(map(chr, range(32, 500))) * 9,
)


@pytest.mark.parametrize("most", [5, 60, 1000])
def test_only_the_start_is_read_of_what_outgrows_a_limit(tokenizer, monkeypatch, most):
    renderer, pieces, read = _renderer(tokenizer, PLAIN), MarkedText.tokens, []

    def noted(self, text, mark):
        read.append(len(text))
        return pieces(self, text, mark)

    monkeypatch.setattr(MarkedText, "tokens", noted)
    for text in LONG_TEXTS:
        turns = [("user", text), ("assistant", text[:30]), ("user", text[::-1])]
        messages = [{"role": role, "content": content} for role, content in turns]
        whole = renderer.encode(text), renderer.prompt(messages)
        read.clear()
        started = renderer.encode(text, most=most), renderer.prompt(messages, most=most)
        for some, every in zip(started, whole, strict=True):
            assert some == every or (renderer.text.outgrow(some, most) and len(every) > most)
        if renderer.text.is_long(text, most=most) and len(whole[0]) > len(text) / 4:
            assert max(read) < len(text)
            assert started[0] != whole[0]
