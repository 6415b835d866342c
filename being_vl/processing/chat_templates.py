"""messages → text: the chat templates that a new checkpoint can start with.

Source: the turn markers of Llama 3 and of ChatML (SmolLM2), as their own templates write them. They differ
in that content is a string or a list of text, image and video parts, and that what the assistant says stands in
`{% generation %}`, so that `return_assistant_tokens_mask` works.
"""

from collections.abc import Collection

_RENDER_CONTENT = """\
{%- macro render(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'image' -%}
                {{- image_token -}}
            {%- elif part.type == 'video' -%}
                {{- video_token -}}
            {%- elif part.type == 'text' -%}
                {{- part.text -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
"""

_FRAME = """\
{%- if bos_token and bos_token != '<|im_start|>' -%}
    {{- bos_token -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {{- PROMPT -}}
        {%- generation -%}
            {{- SPOKEN -}}
        {%- endgeneration -%}
    {%- else -%}
        {{- OTHERS -}}
    {%- endif -%}
    {{- 'AFTER' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- PROMPT -}}
{%- endif -%}
"""


def _template(prompt: str, spoken: str, others: str, after: str = "") -> str:
    """Jinja: what precedes an answer, an answer (learned), any other message, and what follows each."""
    frame = _FRAME.replace("PROMPT", prompt).replace("SPOKEN", spoken)
    return _RENDER_CONTENT + frame.replace("OTHERS", others).replace("AFTER", after)


LLAMA_3_CHAT_TEMPLATE = _template(
    "'<|start_header_id|>assistant<|end_header_id|>\\n\\n'",
    "render(message.content) + '<|eot_id|>'",
    "'<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + render(message.content) + '<|eot_id|>'",
)
CHATML_CHAT_TEMPLATE = _template(
    "'<|im_start|>assistant\\n'",
    "render(message.content) + '<|im_end|>'",
    "'<|im_start|>' + message.role + '\\n' + render(message.content) + '<|im_end|>'",
    after="\\n",
)
PLAIN_CHAT_TEMPLATE = _template(
    "'ASSISTANT:'",
    "' ' + render(message.content) + eos_token",
    "message.role | upper + ': ' + render(message.content)",
    after="\\n",
)


def default_chat_template(vocabulary: Collection[str]) -> str:
    """The template whose turn markers are tokens of a vocabulary, else the one of plain words."""
    if "<|start_header_id|>" in vocabulary and "<|eot_id|>" in vocabulary:
        return LLAMA_3_CHAT_TEMPLATE
    if "<|im_start|>" in vocabulary and "<|im_end|>" in vocabulary:
        return CHATML_CHAT_TEMPLATE
    return PLAIN_CHAT_TEMPLATE
