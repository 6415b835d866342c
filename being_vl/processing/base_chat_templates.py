"""a base's own chat template → the same text, with images and with marks of what the assistant says.

Templates of text models join strings and have no `{% generation %}`. Rewriting their source would need to
understand each; so the source stays as it is, between two pieces of Jinja. The first turns content parts into
text, images into placeholders. The second cuts the rendered text where the assistant begins and ends to speak,
and says it in `{% generation %}`. Where that is, is found by rendering a conversation of known words.
"""

import json
import re
from typing import Any

from jinja2 import TemplateError

from .chat_templates import _RENDER_CONTENT
from .template_limits import limited_template

_PARTS_TO_TEXT = (
    _RENDER_CONTENT
    + """\
{%- set being_vl = namespace(messages=[]) -%}
{%- for message in messages -%}
    {%- if message.content is defined and message.content is not string and message.content is not none -%}
        {%- set text = render(message.content) -%}
        {%- set being_vl.messages = being_vl.messages + [dict(message, content=text)] -%}
    {%- else -%}
        {%- set being_vl.messages = being_vl.messages + [message] -%}
    {%- endif -%}
{%- endfor -%}
{%- set messages = being_vl.messages -%}
"""
)
_MARKS = """\
{%- for turn in being_vl_text.split(begin) -%}
    {%- if not loop.first -%}
        {{- begin -}}
    {%- endif -%}
    {%- if loop.first or end not in turn -%}
        {{- turn -}}
    {%- else -%}
        {%- set spoken = turn.split(end)[0] + end -%}
        {%- generation -%}
            {{- spoken -}}
        {%- endgeneration -%}
        {{- turn[spoken | length:] -}}
    {%- endif -%}
{%- endfor -%}
"""
_WORDS = ("Wherefore", "Therefore", "Whereupon", "Thereupon")  # question, answer, twice


def extended_chat_template(tokenizer: Any) -> str | None:
    """The base tokenizer's chat template, extended; None if it has none.

    A template that has `{% generation %}` keeps its own. Reasoning that a template puts into the assistant's
    turn (`<think>` of Qwen 3) is marked as spoken, and the end of the turn is too.

    Raises:
        ValueError: none of several templates is the default; or the template does not render, or shows no place where
            the assistant begins or ends: give a template with `{% generation %}` instead.
    """
    if tokenizer.chat_template is None:
        return None
    source = tokenizer.get_chat_template()
    if re.search(r"\{%-?\s*generation\b", source):
        return _PARTS_TO_TEXT + source
    begin, end = _turn_marks(tokenizer, source)
    captured = "{% set being_vl_text %}" + source.removesuffix("\n") + "{% endset %}\n"
    # Not in ASCII: of the surrogate pair that stands for an emoji there, Jinja makes two characters.
    sets = (
        f"{{%- set {name} = {json.dumps(mark, ensure_ascii=False)} -%}}\n"
        for name, mark in (("begin", begin), ("end", end))
    )
    return _PARTS_TO_TEXT + captured + "".join(sets) + _MARKS


def _turn_marks(tokenizer: Any, source: str) -> tuple[str, str]:
    """The text that precedes what the assistant says, and the text that ends it."""
    roles = ("user", "assistant") * 2
    messages = [{"role": role, "content": word} for role, word in zip(roles, _WORDS, strict=True)]

    def render(count: int, *, prompt: bool = False) -> str:
        return tokenizer.apply_chat_template(
            messages[:count], chat_template=source, tokenize=False, add_generation_prompt=prompt
        )

    try:
        with limited_template(source, f"{tokenizer.name_or_path or 'the base'}"):
            whole, question, asked = render(4), render(1), render(1, prompt=True)
    except (TemplateError, TypeError) as error:
        raise ValueError(f"the base's chat template does not render: {error}") from None
    places = [whole.find(word) for word in _WORDS]
    if -1 in places or places != sorted(places):
        raise ValueError("the base's chat template does not show every message, in order")
    ends = [place + len(word) for place, word in zip(places, _WORDS, strict=True)]
    before = whole[ends[0] : places[1]]  # of an answer that is not the last: no reasoning in it
    after, tail = whole[ends[1] : places[2]], whole[ends[3] :]
    tokens = [str(token) for token in tokenizer.added_tokens_decoder.values() if str(token)]
    begin = asked.removeprefix(question) if asked.startswith(question) else ""
    if not begin or not before.endswith(begin):
        starts = sorted((before.rfind(token) for token in tokens if token in before), reverse=True)
        begin = next((before[s:] for s in starts if whole.count(before[s:]) == 2), "")
    shared = next((n for n, (a, b) in enumerate(zip(after, tail, strict=False)) if a != b), None)
    shared = min(len(after), len(tail)) if shared is None else shared
    stops = [after.find(token) + len(token) for token in tokens if token in after[:shared]]
    end = after[: min(stops)] if stops else after[:shared]
    if not begin.strip() or not end.strip():
        raise ValueError(
            "the base's chat template has no mark where the assistant begins or ends to speak: give a template "
            "with {% generation %}"
        )
    return begin, end
