"""What a quantizer is: pixels → codes, and where it can, codes → pixels.

Source: the least that the commands ask of one. `docs/quantizers.md` shows one being brought. Every model of this
room fits, those of other libraries by an adapter, and an object of a user's own by its importable name.
"""

import importlib
import inspect
import os
import re
from typing import Any

import torch
from torch import nn
from transformers import AutoModel
from transformers.utils import cached_file

from ..files import read_json, shown
from ..hub.part import VQ_FOLDER, hub_options, pinned, place_on_hub
from .image_processing_being_vl import BeingVLImageProcessor
from .modeling_being_vl_adapted_vq import ADAPTERS, BeingVLAdaptedVQConfig, adapt


class OwnQuantizer(nn.Module):
    """An object of a user's own in the place of a model of this library.

    It has `num_embeddings` (K), `downsampling` (pixels of a cell along a side) and `encode` (pixels (B, 3, H, W)
    float → codes (B, h, w) integer, in [0, K)). It may also have `decode` (codes → pixels), `resolution` (the side
    that images are resized to, 256 by default), `preprocessing` (options of the image processor; by default pixels
    are −1 … 1), `get_codebook` (vectors (K, D)), and, unless it is an `nn.Module`, whose weights identify it, must
    have `identity`: a text that changes whenever codes could.

    Args:
        quantizer: the object.
        name: importable name that it came from, for messages.

    Raises:
        ValueError: it is no quantizer; the message names what is missing.
    """

    def __init__(self, quantizer: Any, name: str):
        super().__init__()
        for field in ("num_embeddings", "downsampling"):
            value = getattr(quantizer, field, None)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: {field} must be a positive integer, got {value!r}")
        if not callable(getattr(quantizer, "encode", None)):
            raise ValueError(f"{name}: encode is missing (pixels (B, 3, H, W) → codes (B, h, w))")
        identity = getattr(quantizer, "identity", None)
        if not isinstance(quantizer, nn.Module) and not isinstance(identity, str):
            raise ValueError(
                f"{name}: identity is missing: a text that changes whenever codes could (a module has its weights)"
            )
        self.quantizer = quantizer
        self.name_or_path = name
        self.config = BeingVLAdaptedVQConfig(
            adapter=f"own:{identity or name}",
            num_embeddings=quantizer.num_embeddings,
            downsampling=quantizer.downsampling,
            resolution=getattr(quantizer, "resolution", 256),
            preprocessing=getattr(quantizer, "preprocessing", {"rescale_factor": 1 / 127.5}),
        )

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.parameters()), torch.float32)

    @torch.no_grad()
    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Codes, checked: the object is not known to keep its word."""
        codes = self.quantizer.encode(pixel_values)
        batch, _, height, width = pixel_values.shape
        side, name = self.config.downsampling, self.name_or_path
        shape = (batch, height // side, width // side)
        if tuple(codes.shape) != shape or codes.is_floating_point():
            raise ValueError(
                f"{name}: encode must give integers {shape} for pixels {tuple(pixel_values.shape)}, got "
                f"{codes.dtype} {tuple(codes.shape)}"
            )
        if codes.numel() and not 0 <= codes.min() <= codes.max() < self.config.num_embeddings:
            raise ValueError(
                f"{name}: codes must be in [0, {self.config.num_embeddings}), got {int(codes.min())} to "
                f"{int(codes.max())}"
            )
        return codes.long()

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        if not callable(getattr(self.quantizer, "decode", None)):
            raise ValueError(f"{self.name_or_path} has no decode: it turns pixels into codes only")
        return self.quantizer.decode(codes)

    def get_codebook(self) -> torch.Tensor | None:
        """The vectors of the codes (K, D), or None where the object does not tell."""
        return self.quantizer.get_codebook() if hasattr(self.quantizer, "get_codebook") else None

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refused: whoever loads a checkpoint would have to import and run what it names."""
        raise ValueError(
            f"the quantizer {self.name_or_path} is code of your own and does not travel with a checkpoint; save "
            "without it (vq_model=None) and give codes, or make it a PreTrainedModel with remote code"
        )


def load_quantizer(source: str | os.PathLike, **options: Any) -> Any:
    """Load any quantizer; it has `encode`, mostly `decode`, and a `config` as of this library's models.

    Args:
        source: a folder, a repository or a folder in one (`owner/name/folder`) of one of this library's models, of
            transformers' Chameleon, Emu3, Janus or GLM-Image (the whole model or its VQ model) or of diffusers'
            VQModel; or `package.module:name` of an object, or of a function or class that makes one.
        options: of `from_pretrained`; `trust_remote_code=True` runs the code that a model of another type brings.
            Weights of another library's models are float32 unless `dtype` says otherwise, since codes of half
            precision depend on the machine.

    Raises:
        ValueError: no quantizer there; the message says what is.
        OSError: the folder or repository has no config.json, or cannot be reached.
    """
    name = os.fspath(source)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", name) and not os.path.exists(name):
        return OwnQuantizer(_imported(name), name).eval()
    name, options = place_on_hub(name, options)
    options |= pinned(name, options)
    fields = _config_fields(name, options)
    model_type = fields.get("model_type") or fields.get("_class_name")
    own = str(model_type).startswith("being_vl_")
    if "auto_map" in fields and not own and options.get("trust_remote_code") is not True:
        raise ValueError(
            f"{name}: a {model_type!r} brings code of its own (auto_map in config.json), which is not run unasked: "
            "read it, and pass trust_remote_code=True; a command takes package.module:name of a function that "
            "does (docs/quantizers.md)"
        )
    if own or "auto_map" in fields:
        return AutoModel.from_pretrained(name, **options).eval()
    for adapter in ADAPTERS:
        if model_type in adapter.model_types:
            model = adapt(adapter.load(name, **options))
            return model if options.keys() & {"dtype", "torch_dtype"} else model.float()
    if os.path.exists(os.path.join(name, VQ_FOLDER, "config.json")):
        raise ValueError(
            f"{name}: a whole checkpoint; its quantizer is {os.path.join(name, VQ_FOLDER)}"
        )
    raise ValueError(
        f"{name}: a {model_type!r} is no quantizer that is known here; convert-vq reads VQ-GANs of taming-transformers, "
        "LDM and LlamaGen, and package.module:name brings your own (docs/quantizers.md)"
    )


def image_processor_for(
    source: str | os.PathLike, config: Any, **options: Any
) -> BeingVLImageProcessor:
    """The image processor that lies beside a quantizer of this library, else the default one for its configuration.

    `source` is what it was loaded from, `options` are of `from_pretrained`.
    """
    source, options = place_on_hub(source, options)
    # Beside an adapted model lies the file of another library's image processor, with options of its own.
    if not isinstance(config, BeingVLAdaptedVQConfig):
        missing_is_none = {"_raise_exceptions_for_missing_entries": False, **hub_options(options)}
        if cached_file(source, "preprocessor_config.json", **missing_is_none):
            return BeingVLImageProcessor.from_pretrained(source, **options)
    return default_image_processor(config)


def default_image_processor(config: Any) -> BeingVLImageProcessor:
    """Chameleon's preprocessing, or that of an adapted model, at the resolution of a quantizer."""
    side = config.resolution
    return BeingVLImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        size_divisor=config.downsampling,
        **getattr(config, "preprocessing", {}),
    )


def _imported(name: str) -> Any:
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name}: cannot be imported: {error}") from error
    return found() if inspect.isclass(found) or inspect.isroutine(found) else found


def _no_config(name: str, index: str | None) -> str:
    """Why there is no config.json, given the model_index.json of a pipeline of diffusers where there is one."""
    if index is None:
        return "it has no config.json"
    parts = read_json(index)
    if not isinstance(parts, dict):
        raise ValueError(f"{index}: must hold an object, got {shown(parts)}")
    folders = [folder for folder, kind in parts.items() if kind == ["diffusers", "VQModel"]]
    rest = f"; its quantizer is {name}/{folders[0]}" if folders else " without a VQModel"
    return f"a pipeline of diffusers{rest}"


def _config_fields(name: str, options: dict[str, Any]) -> dict[str, Any]:
    where = hub_options(options)
    path = cached_file(name, "config.json", **where)  # raises where there is no such repository
    if path is None:
        where["_raise_exceptions_for_missing_entries"] = False
        raise OSError(f"{name}: {_no_config(name, cached_file(name, 'model_index.json', **where))}")
    fields = read_json(path)
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: must hold an object, got {type(fields).__name__}")
    return fields
