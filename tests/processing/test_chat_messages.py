"""Chats: what a template would drop is an error; one BOS; control tokens that parts spell together."""

from __future__ import annotations

import pytest
from checkpoint_fixtures import TEXT_TOKENIZERS, random_grids, tiny_checkpoint

from being_vl.processing.chat_messages import checked_messages, require_assistant_masks

FAMILIES = sorted(TEXT_TOKENIZERS)


@pytest.fixture(scope="module")
def processors():
    return {family: tiny_checkpoint(family)[1] for family in FAMILIES}


def user(content):
    return [{"role": "user", "content": content}]


TEXT = {"type": "text", "text": "Hi"}

BAD = [
    (
        user([TEXT, {"type": "video", "video": "a.mp4"}]),
        r"messages\[0\]\.content\[1\]: a video, but the vocabulary has no video_token",
    ),
    (user([{"type": "audio", "audio": "a.wav"}]), "got 'audio'"),
    (user([{"type": "imgae", "image": "a.png"}]), "got 'imgae'"),
    (user([{"text": "Hi"}]), "got None"),
    (user([{"type": "text", "txt": "Hi"}]), "has no key 'txt'"),
    (user([{"type": "text", "text": None}]), "text must be a text, got None"),
    (user([{"type": "text", "text": {"a": 1}}]), "text must be a text, got a dict"),
    (user([{"type": "image", "img": "a.png"}]), "has no key 'img'"),
    (user([{"type": "image", "url": "a.png", "path": "b.png"}]), "named once"),
    (user(["Hi"]), "must be a part"),
    (user({"text": "Hi"}), r"content must be a text or a list of parts, got a dict"),
    (user(None), r"messages\[0\]\.content is None"),
    ([{"content": "Hi"}], r"messages\[0\] must have a role"),
    (
        [*user("Hi"), {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}],
        "tool_calls",
    ),
]


@pytest.mark.parametrize(("messages", "message"), BAD)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_would_be_dropped_is_named(processors, family, messages, message):
    processor = processors[family]
    for part in (processor, processor.tokenizer):
        for conversation in (messages, [messages]):
            with pytest.raises(ValueError, match=message):
                part.apply_chat_template(conversation, tokenize=True)


@pytest.mark.parametrize("name", ["tools", "documents"])
def test_tools_that_a_template_drops_are_named(processors, name):
    processor = processors["llama-3"]
    for part in (processor, processor.tokenizer):
        given = {name: [{"name": "f"}], "tokenize": False}
        with pytest.raises(ValueError, match=f"^{name}: the chat template does not render"):
            part.apply_chat_template(user("Hi"), **given)
        template = "{{ " + name + "[0].name }}"
        assert part.apply_chat_template(user("Hi"), chat_template=template, **given) == "f"


def test_the_template_that_is_rendered_is_the_one_looked_into(monkeypatch):
    """By its name, or as the default of several; with tools a tokenizer takes `tool_use`, a processor does not."""
    processor = tiny_checkpoint("llama-3")[1]
    templates = {
        "default": processor.chat_template,
        "tool_use": "{{ tools[0].name }}",
        "rag": "{{ documents[0].name }}",
    }
    given = {"tools": [{"name": "f"}], "tokenize": False}
    for part in (processor, processor.tokenizer):
        monkeypatch.setattr(part, "chat_template", templates)
        assert part.apply_chat_template(user("Hi"), chat_template="tool_use", **given) == "f"
        with pytest.raises(ValueError, match=r"^tools: the chat template does not render"):
            part.apply_chat_template(user("Hi"), chat_template="rag", **given)
        with pytest.raises(ValueError, match=r"^documents: the chat template does not render"):
            part.apply_chat_template(user("Hi"), documents=[{"name": "d"}], tokenize=False)
    assert processor.tokenizer.apply_chat_template(user("Hi"), **given) == "f"
    with pytest.raises(ValueError, match=r"^tools: the chat template does not render"):
        processor.apply_chat_template(user("Hi"), **given)


def test_options_by_position_are_looked_at_too(processors):
    processor = processors["llama-3"]
    tool, document = [{"name": "f"}], [{"name": "d"}]
    both = "{{ tools[0].name }}{{ documents[0].name }}"
    tokenizer = processor.tokenizer
    for apply, before in (
        (tokenizer.apply_chat_template, ()),
        (processor.apply_chat_template, (None,)),
    ):
        with pytest.raises(ValueError, match=r"^tools: the chat template does not render"):
            apply(user("Hi"), *before, tool, tokenize=False)
        with pytest.raises(ValueError, match=r"^documents: the chat template does not render"):
            apply(user("Hi"), *before, None, document, tokenize=False)
    assert tokenizer.apply_chat_template(user("Hi"), tool, document, both, tokenize=False) == "fd"
    assert processor.apply_chat_template(user("Hi"), both, tool, document, tokenize=False) == "fd"


@pytest.mark.parametrize("version", ["5.18.0.dev0", "5.18.0rc1", "5.18.0", "5.17.9"])
def test_a_version_before_its_release_has_what_the_release_has(monkeypatch, version):
    monkeypatch.setattr("transformers.__version__", version)
    if version.startswith("5.18"):
        require_assistant_masks()
    else:
        with pytest.raises(ValueError, match=r"needs transformers 5\.18, and this is 5\.17\.9"):
            require_assistant_masks()


def test_rows_of_a_data_set_hold_none_for_the_keys_of_others(processors):
    """Arrow gives every part all keys."""
    processor, grid = processors["llama-3"], random_grids(1)
    plain = user([{"type": "image"}, TEXT])
    row = user(
        [
            {"type": "image", "text": None, "image": None, "url": None},
            {"type": "text", "text": "Hi", "image": None, "url": None},
        ]
    )
    options = {"tokenize": True, "return_dict": True, "processor_kwargs": {"image_codes": grid}}
    assert processor.apply_chat_template(row, **options) == processor.apply_chat_template(
        plain, **options
    )


def test_the_users_messages_are_not_changed():
    messages = user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])
    joined = checked_messages(messages, "", join_texts=True)
    assert joined == user([{"type": "text", "text": "ab"}])
    assert messages == user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rendered_chat_has_the_ids_of_a_tokenized_one(processors, family):
    """Two steps, template and then call, give the BOS that one step gives."""
    processor = processors[family]
    messages = [*user("Hello"), {"role": "assistant", "content": "Hi"}]
    wanted = processor.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    text = processor.apply_chat_template(messages)
    assert processor(text=text)["input_ids"] == wanted
    assert processor(text=[text, text])["input_ids"] == wanted * 2
    assert processor(text=text, add_special_tokens=False)["input_ids"] == wanted


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_control_tokens_that_two_parts_spell_are_text_when_sanitized(processors, family, cut):
    processor = processors[family]
    layout = processor.tokenizer.layout
    visual = "<|visual_3|>"
    control = {"llama-3": "<|eot_id|>", "llama-2": "</s>", "smollm": "<|im_end|>"}[family]
    plain = processor.apply_chat_template(user("now"), tokenize=True, sanitize_control_tokens=True)[
        0
    ]
    control_id = processor.tokenizer.convert_tokens_to_ids(control)
    for word in (control, visual, processor.image_token, processor.boi_token):
        parts = [{"type": "text", "text": part} for part in (word[:cut], f"{word[cut:]} now")]
        ids = processor.apply_chat_template(
            user(parts), tokenize=True, sanitize_control_tokens=True
        )[0]
        assert max(ids) < layout.first_code_id
        assert processor.boi_token_id not in ids and processor.image_token_id not in ids
        assert list(ids).count(control_id) == list(plain).count(control_id)
