"""a VQ model that is loaded when it is first needed.

Source: the way transformers' processors hold an audio tokenizer. It differs in that the model stays on disk
until an image comes: texts, and images whose codes are given, never need it.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.integrations import deepspeed as deepspeed_integration


class LazyVQ:
    """A VQ model, or where to load it from.

    Args:
        model: any model with `encode`, `decode` and a config; it is put into evaluation mode.
        device: where it runs; by default where it is, and the CPU when it is loaded.
        source: path or repository, and the options of `from_pretrained`, to load it from.
    """

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        device: str | torch.device | None = None,
        source: tuple[str, dict[str, Any]] | None = None,
    ):
        self._model = model
        self._device = device
        if source is not None and os.path.isdir(
            source[0]
        ):  # whatever the working directory later is
            source = (os.path.abspath(source[0]), source[1])
        self._source = source
        self._loaded_as: tuple[tuple[Any, ...], ...] | None = None
        if model is not None:
            self._place()

    @property
    def available(self) -> bool:
        """Whether there is a model, loaded or not."""
        return self._model is not None or self._source is not None

    @property
    def loaded(self) -> bool:
        return self._model is not None

    @property
    def model(self) -> PreTrainedModel:
        """The model, loaded on first use.

        Raises:
            ValueError: there is none.
        """
        if self._model is None:
            path, options = self._source_or_raise()
            with _in_one_piece():
                self._model = AutoModel.from_pretrained(path, **options)
            self._place()
            self._loaded_as = self._checksums()
        return self._model

    @property
    def config(self) -> Any:
        """The model's config, read without its weights where they are not loaded yet."""
        if self._model is not None:
            return self._model.config
        path, options = self._source_or_raise()
        return AutoConfig.from_pretrained(path, **options)

    @property
    def device(self) -> torch.device:
        """Where the model runs, or will."""
        return (
            self._model.device if self._model is not None else torch.device(self._device or "cpu")
        )

    def to(self, device: str | torch.device) -> None:
        """Move the model, or choose where it will be loaded."""
        self._device = device
        if self._model is not None:
            self._place()

    def _checksums(self) -> tuple[tuple[Any, ...], ...]:
        """Of the weights themselves: `tensor._version` passes over writes through `.data` and over casts."""
        return tuple(
            (name, tensor.dtype, tensor.is_meta or _checksum(tensor))
            for name, tensor in self._model.state_dict().items()
        )

    def __getstate__(self) -> dict[str, Any]:
        """Where a model was loaded from stands for the model, unless its weights were written to since.

        So a processor travels light to workers, and its fingerprint (`datasets` hashes this state) is the same
        before and after the model has loaded.
        """
        state = dict(self.__dict__)
        if self._loaded_as is not None and self._loaded_as == self._checksums():
            state["_model"] = state["_loaded_as"] = None
        return state

    def _place(self) -> None:
        self._model.eval().requires_grad_(False)
        if self._device is not None:
            self._model.to(self._device)

    def _source_or_raise(self) -> tuple[str, dict[str, Any]]:
        if self._source is None:
            raise ValueError(
                "this processor has no VQ model (built without vq_model, loaded with vq=False, or from a checkpoint "
                "without vq_model/): "
                "pass image_codes instead of images; nothing can be decoded to pixels"
            )
        return self._source


def _checksum(tensor: torch.Tensor) -> int:
    values = tensor.detach().cpu().contiguous().view(-1)
    return zlib.crc32(values.view(torch.uint8).numpy())


@contextmanager
def _in_one_piece() -> Iterator[None]:
    """While a language model trains under ZeRO-3, transformers loads every model in pieces, by all processes
    together; this one is loaded by the process that needs it, and the others would be waited for."""
    reference = deepspeed_integration._hf_deepspeed_config_weak_ref
    deepspeed_integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed_integration._hf_deepspeed_config_weak_ref = reference
