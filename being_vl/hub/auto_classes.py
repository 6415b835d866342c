"""Makes the Auto classes know ours, without importing transformers to do so.

`import being_vl` must register the Auto classes, and `import being_vl.bpe` must load neither torch nor
transformers. So each module of `transformers.models.auto` gets its entries once it has been imported: at
once if it already is, else by a finder that lets the import happen and registers after it. Imports of
transformers and of our modules run into each other (our model imports Llama, which imports AutoModel, whose
entry is our model), so entries wait until the outermost import of either package is done.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..models.families import FAMILIES, auto_classes

_AUTO = "transformers.models.auto."


def _register_configs(auto: ModuleType) -> None:
    from ..quantizers.modeling_being_vl_patch_vq import BeingVLPatchVQConfig
    from ..quantizers.modeling_being_vl_vq import BeingVLVQConfig

    for config in (*_configs(), BeingVLVQConfig, BeingVLPatchVQConfig):
        auto.AutoConfig.register(config.model_type, config, exist_ok=True)


def _configs() -> list[Any]:
    from ..models import configuration_being_vl

    return [getattr(configuration_being_vl, family.config_class) for family in FAMILIES]


def _register_models(auto: ModuleType) -> None:
    from ..models import modeling_being_vl
    from ..quantizers.modeling_being_vl_patch_vq import BeingVLPatchVQConfig, BeingVLPatchVQModel
    from ..quantizers.modeling_being_vl_vq import BeingVLVQConfig, BeingVLVQModel

    auto.AutoModel.register(BeingVLVQConfig, BeingVLVQModel, exist_ok=True)
    auto.AutoModel.register(BeingVLPatchVQConfig, BeingVLPatchVQModel, exist_ok=True)
    for family, config in zip(FAMILIES, _configs(), strict=True):
        for auto_class, name in auto_classes(family).items():
            if auto_class != "AutoConfig":
                model = getattr(modeling_being_vl, name.rpartition(".")[2])
                getattr(auto, auto_class).register(config, model, exist_ok=True)


def _register_tokenizer(auto: ModuleType) -> None:
    from ..processing.tokenization_being_vl import BeingVLTokenizer

    for config in _configs():
        auto.AutoTokenizer.register(config, fast_tokenizer_class=BeingVLTokenizer, exist_ok=True)


def _register_image_processor(auto: ModuleType) -> None:
    from ..quantizers.image_processing_being_vl import BeingVLImageProcessor

    for config in _configs():
        auto.AutoImageProcessor.register(config, BeingVLImageProcessor, exist_ok=True)


def _register_processor(auto: ModuleType) -> None:
    from ..processing.processing_being_vl import BeingVLProcessor

    for config in _configs():
        auto.AutoProcessor.register(config, BeingVLProcessor, exist_ok=True)


_REGISTER: dict[str, Callable[[ModuleType], None]] = {
    _AUTO + "configuration_auto": _register_configs,
    _AUTO + "modeling_auto": _register_models,
    _AUTO + "tokenization_auto": _register_tokenizer,
    _AUTO + "image_processing_auto": _register_image_processor,
    _AUTO + "processing_auto": _register_processor,
}


class _Registrar:
    """Registers what waits, when neither package has an import under way."""

    def __init__(self) -> None:
        self._running = 0
        self._waiting: list[str] = []

    def run(self, loader: Any, module: ModuleType) -> None:
        self._running += 1
        try:
            loader.exec_module(module)
        finally:
            self._running -= 1
        self.imported(module.__name__)

    def imported(self, name: str) -> None:
        if name in _REGISTER:
            self._waiting.append(name)
        while self._waiting and not self._running:
            waiting = self._waiting.pop(0)
            _REGISTER[waiting](sys.modules[waiting])


class _FollowingLoader(importlib.abc.Loader):
    def __init__(self, loader: Any, registrar: _Registrar):
        self._loader = loader
        self._registrar = registrar

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module keeps its own loader, for inspect, tracebacks and importlib.resources.
        module.__loader__ = module.__spec__.loader = self._loader
        self._registrar.run(self._loader, module)

    def __getattr__(self, name: str) -> Any:  # get_code and friends, for python -m
        return getattr(self._loader, name)


class _FollowingFinder(importlib.abc.MetaPathFinder):
    def __init__(self, registrar: _Registrar):
        self._registrar = registrar

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname.partition(".")[0] not in ("being_vl", "transformers"):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _FollowingLoader(spec.loader, self._registrar)
        return spec


def install() -> None:
    """Register with what is already imported now, and with the rest when it is."""
    registrar = _Registrar()
    sys.meta_path.insert(0, _FollowingFinder(registrar))
    for name in _REGISTER:
        if name in sys.modules:
            registrar.imported(name)
