"""A chat template is a program of somebody else's: it cannot hang a process or fill its memory."""

from __future__ import annotations

import time

import numpy as np
import pytest
from checkpoint_fixtures import llama_3_tokenizer, tiny_checkpoint

from being_vl.processing.base_chat_templates import extended_chat_template
from being_vl.processing.processing_being_vl import BeingVLProcessor
from being_vl.processing.template_limits import BrokenTemplateError, limited_template
from being_vl.processing.untrusted_chats import UntrustedChats

MESSAGES = [{"role": "user", "content": "a"}]
HOSTILE = {
    "loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "more than (128 MB|1 s)",
    ),
    "loops that print nothing": (
        "{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% if i == -j %}x{% endif %}{% endfor %}{% endfor %}",
        "more than 1 s",
    ),
    "doubling": (
        "{% set ns = namespace(t=messages[0].content) %}{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
        "more than (128 MB|1 s)",
    ),
    "a macro that calls itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "a macro that calls itself twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "more than 1 s",
    ),
    "a product": ("{{ 'x' * 10000000000 }}", "line 1 of the chat template has a power, a product"),
    "a hidden product": ("a\n{% set n = 'x' %}{{ n * messages|length }}", "line 2 of the chat template"),
    "a power": ("{{ 2 ** 99999999 }}", "has a power"),
    "a format": ("{{ '%9999999999d' % 1 }}", "a wide format"),
    "a filter": ("{{ 'x'|center(9999999999) }}", "a wide format"),
    "no Jinja": ("{% for %}", "not Jinja"),
    "long": ("x" * (1 << 20), "1048576 characters"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates(name):
    template, message = HOSTILE[name]
    processor = tiny_checkpoint()[1]
    started = time.process_time()
    for part in (processor, processor.tokenizer):
        with pytest.raises(ValueError, match=message):
            part.apply_chat_template(MESSAGES, chat_template=template, tokenize=False)
    tokenizer = llama_3_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=message):
        extended_chat_template(tokenizer)
    assert time.process_time() - started < 3 * 2


def test_templates_as_models_have_them():
    """What the checks look for stands in published templates too, in a harmless form."""
    processor = tiny_checkpoint()[1]
    template = (
        "{% for m in messages %}{% if loop.index0 % 2 == 0 %}{{ loop.index0 * 2 }}{{ '%s' % m.role }}{{ ' ' * 4 }}"
        "{{ m.content | indent(4) }}{% generation %}{% endgeneration %}{% break %}{% endif %}{% endfor %}"
    )
    assert (
        processor.apply_chat_template(MESSAGES, chat_template=template, tokenize=False)
        == "0user    a"
    )
    with pytest.raises(Exception, match="roles must alternate"):  # said by the template itself
        processor.apply_chat_template(
            MESSAGES, chat_template="{{ raise_exception('roles must alternate') }}"
        )


def test_another_threads_rendering_is_not_limited_but_checked():
    import threading

    done = []

    def render():
        with limited_template("{{ 1 }}", "x"):
            done.append(True)

    thread = threading.Thread(target=render)
    thread.start()
    thread.join()
    assert done


@pytest.mark.parametrize("template", [
    "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
    "{% for m in messages %}{% for p in m.content %}{{ '<image><image>' if p.type == 'image' else p.text }}{% endfor %}{% endfor %}",
])  # fmt: skip
def test_a_template_that_loses_images_is_blamed_by_its_file(tmp_path, template):
    _, processor = tiny_checkpoint()
    processor.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    processor = BeingVLProcessor.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    says = rf"chat_template\.jinja: the chat template puts {template.count('<image>')} placeholder\(s\) for 1 image\(s\)"
    with pytest.raises(BrokenTemplateError, match=says):
        processor.apply_chat_template(
            messages, tokenize=True, processor_kwargs={"image_codes": [np.zeros((1, 1), int)]}
        )
    with pytest.raises(BrokenTemplateError, match=says):
        UntrustedChats(processor.tokenizer).ids(messages)


def test_a_text_that_spells_a_placeholder_is_not_blamed_on_the_template():
    _, processor = tiny_checkpoint()
    messages = [{"role": "user", "content": f"{processor.image_token} What?"}]
    with pytest.raises(ValueError, match="The number of image tokens") as raised:
        processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    assert not isinstance(raised.value, BrokenTemplateError)
    assert processor.image_token_id not in UntrustedChats(processor.tokenizer).ids(messages)
