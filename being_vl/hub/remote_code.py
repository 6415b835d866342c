"""checkpoint → checkpoint that carries its own code, for `trust_remote_code=True`.

Source: transformers' `register_for_auto_class`, whose files and `auto_map` entries this writes. It differs
in that it works on a folder that is already saved, so no class is changed for the rest of the process,
and in that one language model answers to several Auto classes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..files import read_json, write_atomic, write_json
from ..models.families import FAMILIES, auto_classes
from .commit import VQ_FOLDER
from .flat_modules import flat_modules

_CONFIG_AUTO_MAPS: dict[str, dict[str, str]] = {
    **{
        family.model_type: {
            auto_class: name.removeprefix("models.")
            for auto_class, name in auto_classes(family).items()
        }
        for family in FAMILIES
    },
    "being_vl_vq": {
        "AutoConfig": "modeling_being_vl_vq.BeingVLVQConfig",
        "AutoModel": "modeling_being_vl_vq.BeingVLVQModel",
    },
    "being_vl_patch_vq": {
        "AutoConfig": "modeling_being_vl_patch_vq.BeingVLPatchVQConfig",
        "AutoModel": "modeling_being_vl_patch_vq.BeingVLPatchVQModel",
    },
}
_TOKENIZER_AUTO_MAP = {"AutoTokenizer": ["tokenization_being_vl.BeingVLTokenizer", None]}
_PROCESSOR_AUTO_MAP = {"AutoProcessor": "processing_being_vl.BeingVLProcessor"}
_IMAGE_PROCESSOR_AUTO_MAP = {
    "AutoImageProcessor": "image_processing_being_vl.BeingVLImageProcessor"
}


def add_remote_code(folder: str | os.PathLike) -> list[str]:
    """Make a checkpoint loadable with `trust_remote_code=True` where being_vl is not installed.

    Writes `auto_map` into the configurations of a folder, and the modules they name into it; the same for
    its subfolder `vq_model/`. A processor's folder without a model, and a VQ model's folder, will do too.
    From then on a plain `AutoTokenizer` on such a machine asks for `trust_remote_code` as well;
    `PreTrainedTokenizerFast.from_pretrained` does not.

    Returns:
        the names of the modules, relative to the folder.

    Raises:
        ValueError: the folder has no configuration of ours.
    """
    folder = Path(folder)
    classes: list[str] = []
    config = read_json(folder / "config.json", optional=True)
    if config is not None:
        auto_map = _CONFIG_AUTO_MAPS.get(config.get("model_type", ""))
        if auto_map is None:
            raise ValueError(
                f"{folder / 'config.json'}: model_type is {config.get('model_type')!r}, expected one of "
                f"{sorted(_CONFIG_AUTO_MAPS)}"
            )
        classes += _add_auto_map(folder / "config.json", config, auto_map)
    if (tokenizer := read_json(folder / "tokenizer_config.json", optional=True)) is not None:
        classes += _add_auto_map(folder / "tokenizer_config.json", tokenizer, _TOKENIZER_AUTO_MAP)
    if (processor := read_json(folder / "processor_config.json", optional=True)) is not None:
        processor["image_processor"]["auto_map"] = dict(_IMAGE_PROCESSOR_AUTO_MAP)
        classes += _IMAGE_PROCESSOR_AUTO_MAP.values()
        classes += _add_auto_map(folder / "processor_config.json", processor, _PROCESSOR_AUTO_MAP)
    if not classes:
        raise ValueError(
            f"{folder} has no config.json, tokenizer_config.json or processor_config.json"
        )
    vq_modules: list[str] = []
    vq_config = read_json(folder / VQ_FOLDER / "config.json", optional=True)
    if vq_config is not None:
        vq_modules = add_remote_code(folder / VQ_FOLDER)
        # AutoModel looks for code at the root, whatever its subfolder; the subfolder is a checkpoint too.
        classes += _CONFIG_AUTO_MAPS[vq_config["model_type"]].values()
    return _copy_modules(folder, classes) + [f"{VQ_FOLDER}/{name}" for name in vq_modules]


def _copy_modules(folder: Path, classes: list[str]) -> list[str]:
    """Write the modules of these classes, and all that they import, flat into a folder."""
    sources = flat_modules({name.split(".")[0] for name in classes})
    for name, source in sources.items():
        write_atomic(folder / f"{name}.py", source)
    return sorted(f"{name}.py" for name in sources)


def _add_auto_map(path: Path, config: dict[str, Any], auto_map: dict[str, Any]) -> list[str]:
    """Write a configuration with its auto_map; returns the classes that the map names."""
    write_json(path, {**config, "auto_map": dict(auto_map)})
    names = [
        name
        for value in auto_map.values()
        for name in (value if isinstance(value, list) else [value])
    ]
    return [name for name in names if name]
