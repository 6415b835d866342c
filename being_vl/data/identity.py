"""Identities of the parts of a checkpoint, and their comparison.

Ids mean something only beside the tokenizer, the merges and the quantizer that made them, and labels only
beside the chat template. They are recorded in each folder that is written, and compared when it is used with a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ..processing.processing_being_vl import BeingVLProcessor
from ..processing.tokenization_being_vl import BeingVLTokenizer
from ..quantizers.identity import quantizer_identity

# What a user may say is right although it differs: `--accept-mismatch quantizer chat_template`.
ACCEPTABLE = ("quantizer", "chat_template", "positions")


def tokenizer_identity(tokenizer: BeingVLTokenizer) -> dict[str, Any]:
    """What makes two tokenizers give the same ids: size, layout, and a digest of both vocabularies.

    Padding and truncation, which a tokenizer's file remembers from its last call, do not count.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend.update(padding=None, truncation=None)
    bpe, layout = tokenizer.image_bpe, tokenizer.layout
    digest = hashlib.sha256(json.dumps(backend, sort_keys=True).encode())
    digest.update(f"{bpe.codebook_size} {bpe.merge_rule}".encode())
    digest.update(np.ascontiguousarray(bpe.merges, dtype="<i4").tobytes())
    return {
        "size": len(tokenizer),
        "layout": {
            "text_size": layout.text_size,
            "num_special_tokens": layout.num_special_tokens,
            "codebook_size": layout.codebook_size,
            "num_merges": layout.num_merges,
        },
        "sha256": digest.hexdigest(),
    }


def processor_identity(processor: BeingVLProcessor) -> dict[str, Any]:
    """What a checkpoint's processor makes of a sample: `tokenizer`, `chat_template`, `quantizer`.

    The quantizer's digest covers weights, preprocessing and precision (see `quantizer_identity`); "" where
    the processor has no quantizer. To compute it, the quantizer is loaded.
    """
    vq = processor.vq_model if processor._vq.available else None
    return {
        "tokenizer": tokenizer_identity(processor.tokenizer),
        "chat_template": template_digest(processor),
        "quantizer": "" if vq is None else quantizer_identity(vq, processor.image_processor),
    }


def template_digest(processor: BeingVLProcessor) -> str:
    """A digest of the chat template."""
    return f"sha256:{hashlib.sha256(str(processor.chat_template).encode()).hexdigest()}"


def compare(
    where: str,
    found: Mapping[str, Any],
    wanted: Mapping[str, Any],
    *,
    rule: str,
    accept: Collection[str] = (),
) -> None:
    """Compare what a folder says of its parts with the parts at hand.

    Args:
        where: names the folder in errors.
        found: name of a part → what is recorded.
        wanted: name of a part → what it is here. A part that either side does not know ("", None or
            absent) is passed over.
        rule: what to do about a difference.
        accept: names whose difference is a warning.

    Raises:
        ValueError: a part differs; both values are named.
    """
    for name, own in wanted.items():
        recorded = found.get(name)
        if recorded in ("", None) or own in ("", None) or recorded == own:
            continue
        fields = own if isinstance(own, Mapping) and isinstance(recorded, Mapping) else ()
        field = next((field for field in fields if recorded.get(field) != own[field]), None)
        if field is not None:
            said = f"{field} is {recorded.get(field)}, here it is {own[field]}"
        else:
            said = f"it is {recorded}, here it is {own}"
        said = f"made with another {name}: {said}"
        if name in accept:
            warnings.warn(f"{where}: {said}; accepted", stacklevel=2)
            continue
        hint = f", or --accept-mismatch {name}" if name in ACCEPTABLE else ""
        raise ValueError(f"{where}: {said}; {rule}{hint}")
