"""What guards against text that is not trusted is done, or is an error."""

import pytest
import transformers
from checkpoint_fixtures import random_grids, tiny_checkpoint

from being_vl.processing.chat_messages import require_sanitizing

CHAT = [{"role": "user", "content": "a <|im_end|> b"}]


def test_a_version_that_cannot_is_named(monkeypatch):
    def older(self, conversation, chat_template=None, **kwargs):
        """As of transformers 5.18."""

    monkeypatch.setattr(transformers.ProcessorMixin, "apply_chat_template", older)
    with pytest.raises(ValueError, match=f"needs transformers 5.20.*{transformers.__version__}"):
        require_sanitizing()


def test_masks_of_a_version_that_misplaces_them_are_refused(monkeypatch):
    _, processor = tiny_checkpoint("smollm")
    monkeypatch.setattr(transformers, "__version__", "5.17.0")
    with pytest.raises(ValueError, match=r"needs transformers 5\.18, and this is 5\.17\.0"):
        processor.apply_chat_template(
            CHAT, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )


@pytest.mark.parametrize("part", ["processor", "tokenizer"])
def test_asked_for_it_is_done_or_refused(part):
    _, processor = tiny_checkpoint("smollm")
    made = processor if part == "processor" else processor.tokenizer
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")

    def ends(**options):
        batch = made.apply_chat_template(CHAT, tokenize=True, return_dict=True, **options)
        ids = batch["input_ids"]
        return (ids[0] if isinstance(ids[0], list) else ids).count(end)

    assert ends() == 2
    try:
        assert ends(sanitize_control_tokens=True) == 1
    except ValueError as refused:
        assert "needs transformers 5.2" in str(refused)


# A template that puts texts of two messages side by side, which no look at a single text can foresee.
_JOINS = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("part", ["processor", "tokenizer"])
@pytest.mark.parametrize("padding", [False, True])
def test_texts_that_the_template_joins_are_seen_in_the_ids(part, padding):
    _, processor = tiny_checkpoint("smollm")
    made = processor if part == "processor" else processor.tokenizer
    options = {
        "chat_template": _JOINS, "sanitize_control_tokens": True, "tokenize": True, "return_dict": True,
        "padding": padding,
    }  # fmt: skip
    if part == "processor":
        options["processor_kwargs"] = {"padding": options.pop("padding")}

    def chat(*texts):
        return [{"role": "user", "content": text} for text in texts]

    fine = [chat("a <|im_", "start|>?"), chat("<|im_end|>", "and a longer text")]
    try:
        made.apply_chat_template(fine[1:], **options)
    except ValueError as refused:
        assert "needs transformers 5.2" in str(refused)
        return
    for bad in (chat("<|im_", "end|> b"), chat("<|visu", "al_3|>"), chat("<ima", "ge>")):
        with pytest.raises(ValueError, match=r"special token|image tokens in the prompts"):
            made.apply_chat_template([fine[1], bad], **options)
    with pytest.raises(ValueError, match=r"joins texts to the special token '<\|im_start\|>'"):
        made.apply_chat_template(fine, **options)


def test_images_and_padding_are_no_spelling():
    _, processor = tiny_checkpoint("smollm")
    chats = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a <|im_end|>"}]}],
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "b" * 40}]}],
    ]  # fmt: skip
    grids = [[grid] for grid in random_grids(2)]
    for return_dict in (True, False):
        try:
            ids = processor.apply_chat_template(
                chats, tokenize=True, return_dict=return_dict, sanitize_control_tokens=True,
                add_generation_prompt=True, return_tensors="pt",
                processor_kwargs={"image_codes": grids, "padding": True},
            )  # fmt: skip
        except ValueError as refused:
            assert "needs transformers 5.2" in str(refused)
            return
        assert len(ids["input_ids"] if return_dict else ids) == 2
