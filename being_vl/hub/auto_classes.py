"""Our classes in the tables of transformers' Auto classes, by name: registered without loading anything.

The tables hold model type → class name, and ask the module `transformers.models.<model type>` for a class
when it is needed. So our names are added to each table as soon as transformers has made it, and this package
answers in place of those modules. `AutoModel.register` would need the class itself: while transformers is
being imported (our model imports Llama, which imports AutoModel) that class cannot be had yet.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from .classes import CLASSES

_AUTO = "transformers.models.auto"
# Auto class → the module that makes its table, and the name of the table there.
_TABLES = {
    "AutoConfig": ("configuration_auto", "CONFIG_MAPPING"),
    "AutoModel": ("modeling_auto", "MODEL_MAPPING"),
    "AutoModelForCausalLM": ("modeling_auto", "MODEL_FOR_CAUSAL_LM_MAPPING"),
    "AutoModelForImageTextToText": ("modeling_auto", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING"),
    "AutoModelForMultimodalLM": ("modeling_auto", "MODEL_FOR_MULTIMODAL_LM_MAPPING"),
    "AutoTokenizer": ("tokenization_auto", "TOKENIZER_MAPPING"),
    "AutoImageProcessor": ("image_processing_auto", "IMAGE_PROCESSOR_MAPPING"),
    "AutoVideoProcessor": ("video_processing_auto", "VIDEO_PROCESSOR_MAPPING"),
    "AutoProcessor": ("processing_auto", "PROCESSOR_MAPPING"),
}


def register(package: ModuleType) -> None:
    """Add our classes to transformers' tables: now, or when transformers is imported.

    Args:
        package: what has our classes as attributes.
    """
    for model_type in CLASSES:
        sys.modules[f"transformers.models.{model_type}"] = package
    sys.meta_path.insert(0, _AfterImport())
    for module in _AfterImport.modules & sys.modules.keys():
        _add_names(sys.modules[module])


class _AfterImport(MetaPathFinder):
    """Finds the modules with the tables as ever, and adds our names once one of them has been executed."""

    modules = frozenset(f"{_AUTO}.{module}" for module, _ in _TABLES.values())

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname not in self.modules:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _add_names(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _add_names(auto: ModuleType) -> None:
    """Add our names to the tables of one module."""
    for auto_class, (module, table) in _TABLES.items():
        if auto.__name__ != f"{_AUTO}.{module}":
            continue
        for model_type, classes in CLASSES.items():
            if auto_class in classes:
                name, config = (
                    classes[key].rpartition(".")[2] for key in (auto_class, "AutoConfig")
                )
                # Image processors have a name for each backend; ours needs Pillow alone.
                names = getattr(auto, f"{table}_NAMES")
                entry: Any = {"pil": name} if auto_class == "AutoImageProcessor" else name
                if auto_class == "AutoVideoProcessor":  # by backend since transformers 5.22 or so
                    by_backend = any(isinstance(known, dict) for known in names.values())
                    entry = {"torchvision": name} if by_backend else name
                names[model_type] = entry
                if auto_class != "AutoConfig":
                    getattr(auto, table)._reverse_config_mapping[config] = model_type
