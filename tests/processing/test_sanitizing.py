"""What guards against text that is not trusted is done, or is an error."""

import pytest
import transformers
from checkpoint_fixtures import tiny_checkpoint

from being_vl.processing.chat_messages import require_sanitizing

CHAT = [{"role": "user", "content": "a <|im_end|> b"}]


def test_a_version_that_cannot_is_named(monkeypatch):
    def older(self, conversation, chat_template=None, **kwargs):
        """As of transformers 5.18."""

    monkeypatch.setattr(transformers.ProcessorMixin, "apply_chat_template", older)
    with pytest.raises(ValueError, match=f"needs transformers 5.20.*{transformers.__version__}"):
        require_sanitizing()


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
