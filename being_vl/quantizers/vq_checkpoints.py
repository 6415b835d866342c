"""published checkpoints → `BeingVLVQModel`.

Source: the layouts of transformers' Chameleon (`model.vqmodel.*` among a language model's shards, no
decoder), of taming-transformers and the original Chameleon (`vqgan.ckpt`, with a discriminator under
`loss.*`), and of Being-VL (Chameleon's keys plus `decoder.*`). It differs from their loaders in that only
the VQ-GAN's tensors are read, nothing is unpickled but tensors, sizes come from the weights themselves,
and a key that is missing, left over or of another shape is an error.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..files import read_json, read_yaml, reading
from .configuration_being_vl_vq import BeingVLVQConfig
from .modeling_being_vl_vq import BeingVLVQModel
from .vq_checkpoint_files import fetch, open_weights

_ANCHOR = "encoder.conv_in.weight"  # the key that finds a VQ-GAN, and its prefix, in any checkpoint
_LLAMAGEN = "encoder.conv_blocks.0.res.0.conv1.weight"
# Buffers of taming's moving averages of the codebook, and of LlamaGen's statistics.
_TRAINING_KEYS = {
    "quantize.embedding.cluster_size",
    "quantize.embedding.embed_avg",
    "quantize.codebook_used",
}
# What a configuration beside the weights decides; the rest is read off the weights, and compared.
_FREE_FIELDS = ("attn_resolutions", "attn_type", "has_decoder", "out_channels")
_STORED_FIELDS = (
    "resolution",
    "norm_num_groups",
    "dropout",
    "l2_norm",
    "codebook_l2_norm",
    "embed_dim",
    "num_embeddings",
    "latent_channels",
    "base_channels",
    "channel_multiplier",
    "num_res_blocks",
)
# Names in `ddconfig` of taming's YAML files.
_TAMING_FIELDS = {
    "resolution": "resolution",
    "dropout": "dropout",
    "z_channels": "latent_channels",
    "ch": "base_channels",
    "ch_mult": "channel_multiplier",
    "num_res_blocks": "num_res_blocks",
}
_NO_CODEBOOK = "this is an autoencoder with KL (as LDM's AutoencoderKL); it has no codebook"
_UNSUPPORTED = (
    (
        r"encoder\.time_(conv|res_stack)",
        "this is Emu3's VQ model; it needs no conversion: name its folder as the quantizer",
    ),
    (
        r"quantize\.proj\.weight$",
        "this is a VQ-GAN with Gumbel softmax (taming's GumbelVQ), which is not supported",
    ),
    (
        r"(vq|rvq|quantizers?|quantize)\.(layers|quantizers)\.\d+\.",
        "this is a residual quantizer (RVQ) with several codebooks, which is not supported; its codes are: "
        "encode them as grids (time, codebook)",
    ),
    (
        r"(^|\.)(quantizer?\.(project_in|implicit_codebook|_levels|_basis|mask)|(fsq|lfq)\.)",
        "this is a finite scalar or lookup-free quantizer of another library; it has no learned codebook",
    ),
    (
        r"encoder\.down_blocks\.\d+\.resnets\.",
        "this is a model of diffusers; a VQModel needs no conversion (name its folder as the quantizer), and "
        "an AutoencoderKL has no codebook",
    ),
)
_NAMED_KEYS = 8


def load_vq_checkpoint(
    source: str | os.PathLike,
    *,
    resolution: int | None = None,
    dtype: torch.dtype = torch.float32,
    ema: bool = True,
) -> BeingVLVQModel:
    """Load a VQ-GAN from any of the published layouts.

    Args:
        source: a .safetensors or .ckpt/.pt/.pth/.bin file, a folder with such files (sharded or not), or
            the id of a repository on the Hub, of which only the files with VQ-GAN weights are fetched.
        resolution: side in pixels that it was trained on; by default that of a config.json or a YAML file beside
            the weights (`NAME.yaml`, `config.yaml`, `model.yaml`), else 512.
        dtype: of the weights, but for the codebook, which stays float32.
        ema: take the moving averages of the weights where a checkpoint of a training has both.

    Returns:
        The model in eval mode; without `decoder.*` weights it can only encode.

    Raises:
        ValueError: no or several VQ-GANs in there, a file that holds more than tensors or is damaged, or
            keys that are missing, left over or of another shape; the message names them.
        FileNotFoundError: no weights at `source`.
    """
    name = os.fspath(source)
    keys, read = open_weights(name)
    prefix = _find_prefix(keys, name, ema)
    weights = {
        key.removeprefix(prefix): tensor
        for key, tensor in read([key for key in keys if key.startswith(prefix)]).items()
    }
    if ema:  # LDM keeps moving averages under the names of the weights without the dots
        weights = {
            key: weights.get(f"model_ema.{key.replace('.', '')}", tensor)
            for key, tensor in weights.items()
        }
    weights = {
        key: value
        for key, value in weights.items()
        if not key.startswith(("model_ema.", "loss.")) and key not in _TRAINING_KEYS
    }
    fields: dict[str, Any] = {}
    if _LLAMAGEN in weights:
        weights, fields = _from_llamagen(weights), {"l2_norm": True, "resolution": 256}
    fields |= _stored_fields(name)
    if resolution is not None:
        fields["resolution"] = resolution
    with reading(name, "cannot be converted"):
        config = _infer_config(weights, name, **fields)
    with torch.device("meta"):
        model = BeingVLVQModel(config)
    _check_keys(weights, model.state_dict(), name)
    kept = {"quantize.embedding.weight": torch.float32}
    weights = {key: tensor.to(kept.get(key, dtype)).contiguous() for key, tensor in weights.items()}
    for key, tensor in weights.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name}: {key} holds NaN or infinite values in {tensor.dtype}")
    model.load_state_dict(weights, assign=True)
    model.config.dtype = dtype
    return model.requires_grad_(True).eval()


def _infer_config(
    weights: dict[str, torch.Tensor], name: str, *, resolution: int = 512, **fields: Any
) -> BeingVLVQConfig:
    """Sizes of a VQ-GAN from its weights; `fields` that they do not tell, and those that must agree with them."""

    def shape(key: str) -> torch.Size:
        if key not in weights:
            raise ValueError(f"{name}: {key} is missing, which tells the sizes of the model")
        return weights[key].shape

    def count(pattern: str) -> int:
        number = 0
        while pattern.format(number) in weights:
            number += 1
        return number

    base_channels, in_channels = shape(_ANCHOR)[:2]
    levels = count("encoder.down.{}.block.0.conv1.weight")
    channels = [shape(f"encoder.down.{i}.block.0.conv1.weight")[0] for i in range(levels)]
    if not channels or any(number % base_channels for number in channels):
        raise ValueError(
            f"{name}: channels of the levels are {channels}, which must be multiples of {base_channels} "
            f"({_ANCHOR})"
        )
    num_embeddings, embed_dim = shape("quantize.embedding.weight")
    has_decoder = any(key.startswith("decoder.") for key in weights)
    told: dict[str, Any] = dict(
        embed_dim=embed_dim,
        num_embeddings=num_embeddings,
        latent_channels=shape("encoder.conv_out.weight")[0],
        resolution=resolution,
        in_channels=in_channels,
        out_channels=shape("decoder.conv_out.weight")[0] if has_decoder else 3,
        base_channels=base_channels,
        channel_multiplier=[number // base_channels for number in channels],
        num_res_blocks=count("encoder.down.0.block.{}.conv1.weight"),
        attn_resolutions=[
            resolution // 2**i
            for i in range(levels)
            if f"encoder.down.{i}.attn.0.q.weight" in weights
        ]
        or None,
        attn_type="vanilla" if "encoder.mid.attn_1.q.weight" in weights else None,
        has_decoder=has_decoder,
    )
    for field, value in told.items():
        stored = fields.get(field, value)
        if field not in _FREE_FIELDS and stored != (
            list(value) if isinstance(stored, list) else value
        ):
            raise ValueError(
                f"{name}: {field} is {stored!r} in the configuration, but the weights have {value!r}"
            )
    return BeingVLVQConfig(**{**fields, **told})


def _stored_fields(source: str) -> dict[str, Any]:
    """Fields of the configuration that lies beside the weights; none if there is none."""
    is_file = os.path.isfile(source)
    folder = str(Path(source).parent) if is_file else source
    names = [f"{Path(source).stem}.yaml"] if is_file else []
    found_at = (
        fetch(folder, name) for name in (*names, "config.json", "config.yaml", "model.yaml")
    )
    path = next(filter(None, found_at), None)
    if path is None:
        return {}
    try:
        stored = read_json(path) if str(path).endswith(".json") else _from_yaml(read_yaml(path))
        stored = stored.get("vq_config", stored)
        found = {name: stored[name] for name in _STORED_FIELDS if stored.get(name) is not None}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a configuration: {error}") from error
    if "codebook_l2_norm" in found:  # LlamaGen's name
        found["l2_norm"] = found.pop("codebook_l2_norm")
    return found


def _from_yaml(stored: dict[str, Any]) -> dict[str, Any]:
    """taming's, LDM's and the original Chameleon's configuration of a model, with our names."""
    params = stored["model"]["params"]
    # of a latent diffusion model
    params = params.get("first_stage_config", {}).get("params", params)
    sizes = params["ddconfig"]
    return {
        **{ours: sizes.get(theirs) for theirs, ours in _TAMING_FIELDS.items()},
        "embed_dim": params.get("embed_dim"),
        "num_embeddings": params.get("n_embed"),
    }


def _from_llamagen(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """LlamaGen's keys → taming's: the same modules, but the decoder's levels are listed from the coarsest."""
    levels = 1 + max(
        int(key.split(".")[2]) for key in weights if key.startswith("encoder.conv_blocks.")
    )
    names = {"0": "block_1", "1": "attn_1", "2": "block_2"}

    def renamed(key: str) -> str:
        key = re.sub(r"\.mid\.([012])\.", lambda found: f".mid.{names[found[1]]}.", key)
        key = re.sub(r"^encoder\.conv_blocks\.", "encoder.down.", key)
        key = re.sub(
            r"^decoder\.conv_blocks\.(\d+)",
            lambda found: f"decoder.up.{levels - 1 - int(found[1])}",
            key,
        )
        return re.sub(r"^((?:en|de)coder\.(?:down|up)\.\d+)\.res\.", r"\1.block.", key)

    return {renamed(key): tensor for key, tensor in weights.items()}


def _find_prefix(keys: Iterable[str], name: str, ema: bool) -> str:
    prefixes = [
        key.removesuffix(_ANCHOR) for key in keys if key == _ANCHOR or key.endswith(f".{_ANCHOR}")
    ]
    if len(prefixes) > 1:  # weights and their moving averages, each in a dictionary of its own
        averages = [prefix for prefix in prefixes if re.search(r"(^|[._])ema[._]", prefix)]
        rest = [prefix for prefix in prefixes if prefix not in averages]
        prefixes = averages if ema and len(averages) == 1 == len(rest) else rest or prefixes
    if len(prefixes) == 1 and f"{prefixes[0]}quantize.embedding.weight" in keys:
        return prefixes[0]
    for pattern, layout in _UNSUPPORTED:
        if any(re.search(pattern, key) for key in keys):
            raise ValueError(f"{name}: {layout}")
    if len(prefixes) == 1:
        raise ValueError(f"{name}: {_NO_CODEBOOK}")
    found = f"{len(prefixes)}: {', '.join(sorted(prefixes))}" if prefixes else "none"
    raise ValueError(f"{name}: must hold one VQ-GAN, whose keys end like {_ANCHOR}, found {found}")


def _check_keys(
    weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], name: str
) -> None:
    problems = {
        "missing": sorted(expected.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - expected.keys()),
        "of another shape": [
            f"{key} {tuple(weights[key].shape)} instead of {tuple(tensor.shape)}"
            for key, tensor in sorted(expected.items())
            if key in weights and weights[key].shape != tensor.shape
        ],
    }
    if any(problems.values()):
        raise ValueError(
            f"{name}: its keys do not fit the model: "
            + "; ".join(
                f"{len(keys)} {what}: {_some(keys)}" for what, keys in problems.items() if keys
            )
        )


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED_KEYS
    return ", ".join(names[:_NAMED_KEYS]) + (f" and {more} more" if more > 0 else "")
