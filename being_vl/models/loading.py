"""folder, repository or GGUF file → a text model that can be extended, or a Being-VL language model."""

import os
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from ..hub.part import hub_options, pinned
from . import families


def base_family(base: str | os.PathLike) -> families.Family:
    """The family of a text model (folder, Hub id, or .gguf file), from its configuration alone.

    Raises:
        ValueError: it cannot be extended; the message says why.
        OSError: there is no such model.
    """
    source, gguf = _place(base)
    config, _ = PreTrainedConfig.get_config_dict(source, **gguf)
    if not config:
        raise OSError(f"{base} has no config.json")
    return families.family_of_base(config, os.fspath(base))


def base_config(base: str | os.PathLike, family: families.Family) -> PreTrainedConfig:
    """The configuration of a text model of that family, in its stock class."""
    stock = getattr(transformers, family.stock_class)
    source, gguf = _place(base)
    return stock.config_class.from_pretrained(source, **gguf)


def load_base(base: str | os.PathLike, *, dtype: str = "auto") -> PreTrainedModel:
    """A text model in its family's stock class, its weights of a dtype or as saved; errors as of `base_family`."""
    family = base_family(base)
    source, gguf = _place(base)
    return getattr(transformers, family.stock_class).from_pretrained(source, dtype=dtype, **gguf)


def load_base_tokenizer(base: str | os.PathLike) -> Any:
    """The tokenizer of a text model: folder, Hub id, or .gguf file."""
    source, gguf = _place(base)
    return transformers.AutoTokenizer.from_pretrained(source, **gguf)


def load_language_model(checkpoint: str | os.PathLike, **options: Any) -> Any:
    """The language model of a checkpoint, a [`BeingVLLanguageModel`] of whichever family it is.

    Raises:
        ValueError: it is not a Being-VL checkpoint.
        OSError: it does not load.
    """
    from . import modeling_being_vl

    options |= pinned(checkpoint, options)
    config, _ = PreTrainedConfig.get_config_dict(checkpoint, **hub_options(options))
    family = families.family_of_checkpoint(config.get("model_type"), os.fspath(checkpoint))
    language_model = getattr(modeling_being_vl, family.language_model_class)
    return language_model.from_pretrained(checkpoint, **options)


def extend_text_model(text_model: PreTrainedModel, *args: Any, **options: Any) -> Any:
    """[`BeingVLLanguageModel.from_text_model`] of the text model's family; ValueError if it cannot be extended."""
    from . import modeling_being_vl

    family = families.family_of_base(text_model.config.to_dict(), type(text_model).__name__)
    language_model = getattr(modeling_being_vl, family.language_model_class)
    return language_model.from_text_model(text_model, *args, **options)


def _place(base: str | os.PathLike) -> tuple[str, dict[str, str]]:
    """What transformers' `from_pretrained` takes for it."""
    path = os.fspath(base)
    if path.endswith(".gguf"):
        return os.path.dirname(path) or ".", {"gguf_file": os.path.basename(path)}
    return path, {}
