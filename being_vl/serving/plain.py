"""checkpoint → a plain text model, for engines that know no other: vLLM, SGLang, llama.cpp's converter.

An extended checkpoint has the keys and shapes of its family's stock class, so only what the files say has to
change. Engines know nothing of images: a text answer must not hold image tokens, and each engine has its own
word for that, so the folder carries the list in each of them (docs/serving.md says which engine reads which).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import new_folder, read_json, write_atomic, write_json
from ..models.configuration_being_vl import SPECIAL_IDS, ImageVocabularyConfig
from ..models.families import family_of_checkpoint
from ..models.language_model import BeingVLLanguageModel
from ..processing.tokenization_being_vl import BeingVLTokenizer

ALLOWED_FILE = "allowed_token_ids.json"
REQUEST_FILE = "text_request.json"
# What a tokenizer's loading leaves in its configuration, and what only our classes understand.
_NOT_OF_A_PLAIN_TOKENIZER = (
    "auto_map", "is_local", "local_files_only", "name_or_path", "processor_class", "text_vocab_size",
)  # fmt: skip


def image_token_ids(model: BeingVLLanguageModel) -> list[int]:
    """The token ids that no text answer may hold: begins, ends and placeholders, codes, merges."""
    config = model.config
    special = (getattr(config, name) for name in SPECIAL_IDS)
    image_ids = range(config.layout.first_code_id, config.layout.size)
    return sorted({token_id for token_id in special if token_id is not None} | set(image_ids))


def export_checkpoint(
    model: BeingVLLanguageModel,
    tokenizer: BeingVLTokenizer,
    folder: str | os.PathLike,
    *,
    settings: Mapping[str, str] | None = None,
) -> None:
    """Save a model as a plain text model with a plain fast tokenizer, same ids, same logits.

    The folder loads with its family's stock class, such as `LlamaForCausalLM`, and with
    `PreTrainedTokenizerFast` where being_vl is not installed. The sizes of the vocabulary lie under the key
    `being_vl` of `config.json`; `image_bpe.json` stays, for whoever turns images into ids.
    `generation_config.json` suppresses image tokens in stock transformers; `allowed_token_ids.json` is the
    same list the other way round, and `text_request.json` a request with it, for vLLM.

    Args:
        folder: must not exist yet, or be empty.
        settings: names to texts of further files, such as the options of the command that made it.

    Raises:
        ValueError: the folder has files in it, or the model has grid positions, which no stock class has.
    """
    if model.config.image_positions is not None:
        raise ValueError(
            f"a model with image_positions={model.config.image_positions!r} is no plain text model and cannot "
            "be exported"
        )
    suppressed = image_token_ids(model)
    with new_folder(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        for name, text in (settings or {}).items():
            write_atomic(partial / name, text)
        _make_plain(partial / "config.json")
        _make_plain_tokenizer(partial / "tokenizer_config.json")
        generation = read_json(partial / "generation_config.json", optional=True) or {}
        generation["suppress_tokens"] = suppressed
        write_json(partial / "generation_config.json", generation)
        allowed = sorted(set(range(model.config.layout.size)) - set(suppressed))
        write_atomic(partial / ALLOWED_FILE, json.dumps(allowed) + "\n")
        request = {"prompt": "What is the capital of France?", "max_tokens": 32, "temperature": 0}
        request["allowed_token_ids"] = allowed
        write_atomic(partial / REQUEST_FILE, json.dumps(request) + "\n")


def _make_plain(path: Path) -> None:
    """Rewrite a config.json: the text model's fields at the top, ours under one key."""
    fields = read_json(path)
    family = family_of_checkpoint(fields.get("model_type"), str(path.parent))
    fields["being_vl"] = {
        field.name: fields.pop(field.name)
        for field in dataclasses.fields(ImageVocabularyConfig)
        if field.name in fields and field.name != "vocab_size"
    }
    fields.pop("auto_map", None)
    fields["model_type"] = family.base_type
    fields["architectures"] = [family.stock_class]
    write_json(path, fields)


def _make_plain_tokenizer(path: Path) -> None:
    """Rewrite a tokenizer_config.json for `PreTrainedTokenizerFast`."""
    fields: dict[str, Any] = read_json(path)
    for name in _NOT_OF_A_PLAIN_TOKENIZER:
        fields.pop(name, None)
    write_json(path, {**fields, "tokenizer_class": "PreTrainedTokenizerFast"})
