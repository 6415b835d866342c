"""quantizer → a digest that says whose codes these are.

Codes are valid for one set of weights, one preprocessing and one precision. The digest covers all three, so that
shards and caches of codes are never mistaken for another quantizer's.
"""

import hashlib
import json

import torch
from transformers import PreTrainedModel

from .image_processing_being_vl import BeingVLImageProcessor

# The last two are added to parts that a checkpoint holds.
_VOLATILE_CONFIG = frozenset(
    "_name_or_path transformers_version dtype torch_dtype architectures processor_class auto_map".split()
)


def quantizer_identity(
    model: PreTrainedModel, processor: BeingVLImageProcessor, dtype: torch.dtype = torch.float32
) -> str:
    """A digest of what decides the codes: weights, configuration, preprocessing, precision."""
    digest = hashlib.sha256()
    for part in (model.config.to_dict(), processor.to_dict(), {"precision": str(dtype)}):
        stable = {name: value for name, value in part.items() if name not in _VOLATILE_CONFIG}
        digest.update(json.dumps(stable, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()}"
