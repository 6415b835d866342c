"""Chat templates of real bases, as TRL ships them: the same text, images, and marks of what is learned."""

from __future__ import annotations

import re

import pytest
from checkpoint_fixtures import image_bpe, patch_vq, random_grids, smollm_tokenizer, text_model
from template_fixtures import CASES, TRL, base_tokenizer

from being_vl.hub.checkpoint import init_checkpoint
from being_vl.processing.base_chat_templates import extended_chat_template

NEEDS_TRL = pytest.mark.skipif(TRL is None, reason="TRL ships the templates")
END = {
    "gemma3": "<end_of_turn>", "phi3": "<|end|>", "phi3_5": "<|end|>", "llama3": "<|eot_id|>",
    "mistral": "</s>",
}  # fmt: skip
CHAT = [
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "A red square."},
    {"role": "user", "content": "And this?"},
    {"role": "assistant", "content": "A circle."},
]


def render(tokenizer, messages, template=None, **options):
    return tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, image_token="<image>", **options
    )


@NEEDS_TRL
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("prompt", [False, True])
def test_text_is_rendered_as_before(name, prompt):
    tokenizer = base_tokenizer(name)
    template = extended_chat_template(tokenizer)
    for length in (1, 2, 3, 4):
        options = {"add_generation_prompt": prompt}
        before = render(tokenizer, CHAT[:length], **options)
        assert render(tokenizer, CHAT[:length], template, **options) == before
    assert template == extended_chat_template(tokenizer)


@NEEDS_TRL
@pytest.mark.parametrize("name", CASES)
def test_images_are_placeholders_and_answers_are_marked(name):
    tokenizer = base_tokenizer(name)
    model, processor = init_checkpoint(text_model(tokenizer), tokenizer, patch_vq(), image_bpe())
    parts = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A red square."}]},
        *CHAT[2:],
    ]
    batch = processor.apply_chat_template(
        parts,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        processor_kwargs={"image_codes": random_grids(1)},
    )
    ids, mask = batch["input_ids"][0], batch["assistant_masks"][0]
    layout = model.config.layout
    assert sum(layout.first_code_id <= i < layout.size for i in ids) > 0
    spoken = processor.tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
    end = END.get(name, "<|im_end|>")
    think = "<think>\n\n</think>\n\n" if name == "qwen3" else ""  # before the last answer alone
    answers = [part.strip() for part in spoken.split(end)]
    assert answers == ["A red square.", f"{think}A circle.".strip(), ""]


@NEEDS_TRL
def test_reasoning_is_spoken_and_earlier_reasoning_is_dropped_as_in_the_base():
    tokenizer = base_tokenizer("qwen3")
    template = extended_chat_template(tokenizer)
    chat = [dict(message) for message in CHAT]
    for turn in (1, 3):
        chat[turn]["content"] = f"<think>\nhm {turn}\n</think>\n\n{chat[turn]['content']}"
    before = render(tokenizer, chat)
    assert render(tokenizer, chat, template) == before and "hm 1" not in before
    out = tokenizer.apply_chat_template(
        chat, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    ids = [i for i, m in zip(out["input_ids"], out["assistant_masks"], strict=True) if m]
    assert "hm 3" in tokenizer.decode(ids) and "And this" not in tokenizer.decode(ids)


@NEEDS_TRL
def test_marks_of_the_base_are_kept_and_nonsense_is_refused():
    tokenizer = smollm_tokenizer()
    assert extended_chat_template(tokenizer) is None
    tokenizer.chat_template = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    assert extended_chat_template(tokenizer).endswith(tokenizer.chat_template)
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(ValueError, match="does not show every message"):
        extended_chat_template(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="no mark where the assistant"):
        extended_chat_template(tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(ValueError, match="does not render: TemplateError no"):
        extended_chat_template(tokenizer)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    ("begin", "end"),
    [
        ("<|🤖|> é:", "<|終|>"),
        ("🤖", "🔚\n"),
        ("<|END|>[BEGIN]", "</BEGIN>"),
        ('"\\:', "\u2028\x07"),
    ],
)
def test_marks_may_be_any_text(begin, end, special):
    tokenizer = smollm_tokenizer()
    if special:
        tokenizer.add_special_tokens({"extra_special_tokens": [begin.strip(), end]})
    source = (
        "{% for m in messages %}{{ BEGIN if m.role == 'assistant' else '👤 ' }}{{ m.content + END }}{% endfor %}"
        "{% if add_generation_prompt %}{{ BEGIN }}{% endif %}"
    )
    words = {"BEGIN": repr(begin), "END": repr(end)}
    tokenizer.chat_template = re.sub("BEGIN|END", lambda found: words[found[0]], source)
    template = extended_chat_template(tokenizer)
    assert render(tokenizer, CHAT, template) == render(tokenizer, CHAT)
    out = tokenizer.apply_chat_template(
        CHAT, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    pairs = zip(out["input_ids"], out["assistant_masks"], strict=True)
    assert tokenizer.decode([i for i, m in pairs if m]) == f"A red square.{end}A circle.{end}"
