"""What the page shows of errors and of texts that look like HTML."""

from __future__ import annotations

import pytest

gradio = pytest.importorskip("gradio")

from being_vl.demo.page import _literal, _message  # noqa: E402  (needs gradio)


@pytest.mark.parametrize("text", ["<image> what is it?", "a </s> b", "1 < 2 && 3 > 2"])
def test_tags_in_a_text_are_not_taken_for_html(text):
    shown = _literal(text)
    assert "<" not in shown and ">" not in shown
    assert shown.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") == text


def test_an_error_is_a_message_whatever_it_is():
    assert _message(OSError("cannot open\n<b>x</b>")).message == "cannot open &lt;b&gt;x&lt;/b&gt;"
    assert _message(KeyError()).message == "KeyError"
