"""JSON of a request → a checked object, in OpenAI's words; anything that is not understood is an error.

Source: OpenAI's API reference (chat completions, images), with two fields more: `generation_mode` and
`image_grid_size`, as of `generate`. Parameters that change an answer and that no backend has are refused rather
than passed over.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..request_masks import MAX_SIDE, Mode

Side = Annotated[int, Field(gt=0, le=MAX_SIDE)]
# Said about a request, and of no effect on its answer.
_REMARKS = (
    "user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier",
    "prompt_cache_key", "extra_headers", "quality", "style", "background",
)  # fmt: skip
# Allowed with the value that means nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class ImageURL(_Strict):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Strict):
    type: Literal["image_url"]
    image_url: ImageURL


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Strict):
    """A turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_an_answer(cls, fields: Any) -> Any:
        """An answer goes back as the client got it, with fields that hold nothing."""
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None}


class StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class _Request(_Strict):
    """What both kinds of requests may say."""

    model: str | None = None
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    image_grid_size: Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out_remarks(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            raise ValueError("the body must be a JSON object")
        kept = {}
        for name, value in fields.items():
            if name in cls.model_fields or name not in (*_REMARKS, *_NEUTRAL):
                if value is not None:
                    kept[name] = value
            elif value is not None and value not in _NEUTRAL.get(name, (value,)):
                raise ValueError(f"{name} is not supported")
        return kept


class ChatRequest(_Request):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    max_tokens: int | None = Field(None, gt=0)
    max_completion_tokens: int | None = Field(None, gt=0)
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    modalities: list[Literal["text", "image"]] | None = None
    generation_mode: Mode | None = None

    @property
    def mode(self) -> Mode:
        """`generation_mode`, or what `modalities` come to."""
        if self.generation_mode is not None or not self.modalities:
            return self.generation_mode or "text"
        if "image" not in self.modalities:
            return "text"
        return "interleaved" if "text" in self.modalities else "image"

    @property
    def limit(self) -> int | None:
        """The most tokens of the answer."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> list[str]:
        """Texts that end the answer, and are no part of it."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in stop if text]


class ImagesRequest(_Request):
    """`POST /v1/images/generations`."""

    prompt: str = Field(min_length=1)
    n: int = Field(1, ge=1, le=10)
    size: str | None = None
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png"] = "png"

    @field_validator("size")
    @classmethod
    def _is_a_size(cls, size: str | None) -> str | None:
        if size in (None, "auto"):
            return None
        if not re.fullmatch(r"[0-9]+x[0-9]+", size or ""):
            raise ValueError('must be "WIDTHxHEIGHT" in pixels, or "auto"')
        return size


def sentence(errors: list[dict[str, Any]]) -> tuple[str, str | None]:
    """What is wrong with a request, of pydantic's list of it: one sentence, and the field."""
    error = errors[0]
    place = [part for part in error["loc"] if part != "body" and not _is_of_a_union(part)]
    field = ".".join(str(part) for part in place)
    if error["type"] == "json_invalid":
        return "The body is not valid JSON.", None
    if error["type"] == "extra_forbidden":
        return f"{field} is not a parameter that this server knows.", field
    if error["type"] == "missing":
        return f"{field or 'The body'} is missing.", field or None
    text = error["msg"].removeprefix("Value error, ")
    return f"{field + ': ' if field else ''}{text[:300].rstrip('.')}.", field or None


def _is_of_a_union(part: Any) -> bool:
    """Whether pydantic names the branch of a union that it tried, not a field."""
    return isinstance(part, str) and (part in ("str", "text", "image_url") or "[" in part)


def as_sentence(error: ValueError) -> str:
    """The message of an error as one sentence."""
    text = " ".join(str(error).split())[:300].rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."
