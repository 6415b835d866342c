"""Makes the Auto classes know ours, without importing transformers to do so.

`import being_vl` must register the Auto classes, and `import being_vl.bpe` must load neither torch nor
transformers. So each module of `transformers.models.auto` gets its entries when it is imported: at once
if it already is, else by a finder that lets the import happen and registers after it.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_AUTO = "transformers.models.auto."


def _register_configs(auto: ModuleType) -> None:
    from .configuration_being_vl import BeingVLConfig

    auto.AutoConfig.register("being_vl", BeingVLConfig)


def _register_models(auto: ModuleType) -> None:
    from .configuration_being_vl import BeingVLConfig
    from .modeling_being_vl import BeingVLForCausalLM, BeingVLModel
    from .modeling_being_vl_patch_vq import BeingVLPatchVQConfig, BeingVLPatchVQModel
    from .modeling_being_vl_vq import BeingVLVQConfig, BeingVLVQModel

    config_auto = importlib.import_module(_AUTO + "configuration_auto")
    config_auto.AutoConfig.register("being_vl_vq", BeingVLVQConfig)
    config_auto.AutoConfig.register("being_vl_patch_vq", BeingVLPatchVQConfig)
    auto.AutoModel.register(BeingVLConfig, BeingVLModel)
    auto.AutoModel.register(BeingVLVQConfig, BeingVLVQModel)
    auto.AutoModel.register(BeingVLPatchVQConfig, BeingVLPatchVQModel)
    auto.AutoModelForCausalLM.register(BeingVLConfig, BeingVLForCausalLM)
    auto.AutoModelForImageTextToText.register(BeingVLConfig, BeingVLForCausalLM)
    auto.AutoModelForMultimodalLM.register(BeingVLConfig, BeingVLForCausalLM)


def _register_tokenizer(auto: ModuleType) -> None:
    from .configuration_being_vl import BeingVLConfig
    from .tokenization_being_vl import BeingVLTokenizer

    auto.AutoTokenizer.register(BeingVLConfig, fast_tokenizer_class=BeingVLTokenizer)


def _register_image_processor(auto: ModuleType) -> None:
    from .configuration_being_vl import BeingVLConfig
    from .image_processing_being_vl import BeingVLImageProcessor

    auto.AutoImageProcessor.register(BeingVLConfig, BeingVLImageProcessor)


def _register_processor(auto: ModuleType) -> None:
    from .configuration_being_vl import BeingVLConfig
    from .processing_being_vl import BeingVLProcessor

    auto.AutoProcessor.register(BeingVLConfig, BeingVLProcessor)


_REGISTER: dict[str, Callable[[ModuleType], None]] = {
    _AUTO + "configuration_auto": _register_configs,
    _AUTO + "modeling_auto": _register_models,
    _AUTO + "tokenization_auto": _register_tokenizer,
    _AUTO + "image_processing_auto": _register_image_processor,
    _AUTO + "processing_auto": _register_processor,
}


class _RegisteringLoader(importlib.abc.Loader):
    def __init__(self, loader: Any, register: Callable[[ModuleType], None]):
        self._loader = loader
        self._register = register

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._register(module)

    def __getattr__(self, name: str) -> Any:  # get_source and friends, for tracebacks and inspect
        return getattr(self._loader, name)


class _AutoFinder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname not in _REGISTER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader, _REGISTER[fullname])
        return spec


def install() -> None:
    """Register what is already imported now, and the rest when it is."""
    parts = ("configuration", "modeling", "tokenization", "image_processing", "processing")
    if not all(importlib.util.find_spec(f"being_vl.{part}_being_vl") for part in parts):
        return  # while the package is being put together
    sys.meta_path.insert(0, _AutoFinder())
    for name, register in _REGISTER.items():
        if name in sys.modules:
            register(sys.modules[name])
