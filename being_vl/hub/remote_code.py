"""checkpoint → checkpoint that carries its own code, for `trust_remote_code=True`.

Source: transformers' `custom_object_save`, whose files and `auto_map` entries this writes. It differs in that
it works on a folder that is already saved, in that the package need not be flat, and in that one language
model answers to several Auto classes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..files import read_json, write_atomic, write_json
from .classes import CLASSES
from .flat_modules import PACKAGE, flat_modules, flat_name, modules_of
from .part import VQ_FOLDER

# The file that says which Auto classes load a folder by which of our classes.
_FILES = {
    "AutoTokenizer": "tokenizer_config.json",
    "AutoImageProcessor": "preprocessor_config.json",
    "AutoVideoProcessor": "video_preprocessor_config.json",
    "AutoProcessor": "processor_config.json",
}
_CONFIG = "config.json"
_INSIDE = {"AutoImageProcessor": "image_processor", "AutoVideoProcessor": "video_processor"}


def add_remote_code(folder: str | os.PathLike) -> list[str]:
    """Make a checkpoint loadable with `trust_remote_code=True` where being_vl is not installed.

    Writes `auto_map` into the configurations of a folder, and the modules they name into it; the same for
    its subfolder `vq_model/`. A processor's folder without a model, and a VQ model's folder, will do too.
    From then on a plain `AutoTokenizer` on such a machine asks for `trust_remote_code` as well;
    `PreTrainedTokenizerFast.from_pretrained` does not. Returns the names of the modules.
    """
    folder = Path(folder)
    config = read_json(folder / _CONFIG, optional=True)
    model_type = "being_vl" if config is None else config.get("model_type")
    if model_type not in CLASSES:
        raise ValueError(
            f"{folder / _CONFIG}: model_type is {model_type!r}, expected one of {sorted(CLASSES)}"
        )
    files = [_CONFIG, *(file for key, file in _FILES.items() if key in CLASSES[model_type])]
    files = [name for name in files if (folder / name).is_file()]
    if not files:
        raise ValueError(
            f"{folder} has no config.json, tokenizer_config.json or processor_config.json"
        )
    written = {name for file in files for name in _carry(folder, file, model_type, PACKAGE)}
    vq_config = read_json(folder / VQ_FOLDER / _CONFIG, optional=True)
    if vq_config is not None:
        written |= {f"{VQ_FOLDER}/{name}" for name in add_remote_code(folder / VQ_FOLDER)}
        # AutoModel looks for code at the root, whatever its subfolder; the subfolder is a checkpoint too.
        classes = CLASSES[vq_config["model_type"]]
        written |= _write_modules(folder, classes.values(), PACKAGE)
    return sorted(written)


def save_code(part: Any, folder: str | os.PathLike) -> None:
    """Save the code of a part of a checkpoint with it: from the package, or from where it was loaded."""
    folder = Path(folder)
    ours = _class_of_ours(type(part))
    if ours is None:
        return
    model_type, auto_class, root = ours
    only = ("AutoConfig",) if auto_class == "AutoConfig" else None
    _carry(folder, _FILES.get(auto_class, _CONFIG), model_type, root, only)
    if auto_class == "AutoProcessor":
        save_code(part.tokenizer, folder)
        if (image_processor := _class_of_ours(type(part.image_processor))) is not None:
            _carry(folder, _FILES[auto_class], model_type, image_processor[2])
        vq = _class_of_ours(type(part.vq_model)) if part.has_vq_model else None
        if vq is not None:
            save_code(part.vq_model, folder / VQ_FOLDER)
            _write_modules(folder, CLASSES[vq[0]].values(), vq[2])


def has_code(part: Any, folder: str | os.PathLike) -> bool:
    """Whether the configuration that a part has just saved says that its code lies beside it."""
    ours = _class_of_ours(type(part))
    if ours is None:
        return False
    # transformers forgets the auto_map of a processor when it loads it, but not that of its tokenizer.
    auto_class = "AutoTokenizer" if ours[1] == "AutoProcessor" else ours[1]
    content = read_json(Path(folder, _FILES.get(auto_class, _CONFIG)), optional=True)
    return content is not None and auto_class in content.get("auto_map", ())


def _class_of_ours(kind: type) -> tuple[str, str, Path] | None:
    """Model type, Auto class, and the folder that has the sources of a class; None if it is not ours."""
    kind = next(base for base in kind.__mro__ if not base.__module__.startswith("torch."))  # FSDP2
    for model_type, classes in CLASSES.items():
        for auto_class, name in classes.items():
            module, _, class_name = name.rpartition(".")
            names = (module.rpartition(".")[2], flat_name(module))
            if kind.__name__ == class_name and kind.__module__.rpartition(".")[2] in names:
                file = Path(sys.modules[kind.__module__].__file__ or "").resolve()
                inside = PACKAGE.resolve() in file.parents
                return model_type, auto_class, PACKAGE if inside else file.parent
    return None


def _carry(
    folder: Path, file: str, model_type: str, root: Path, only: Iterable[str] | None = None
) -> set[str]:
    """Write `auto_map` into one file of a folder, and the modules that it names beside it.

    Classes whose module is not among the sources, which happens only where transformers has loaded one class
    of a checkpoint alone, are left as the file has them.
    """
    content = read_json(folder / file, optional=True)
    if content is None:  # adapters alone have no configuration
        return set()
    modules = {flat_name(module) for module in modules_of(root)}
    classes = {
        auto_class: name
        for auto_class, name in CLASSES[model_type].items()
        if flat_name(name.rpartition(".")[0]) in modules and (only is None or auto_class in only)
    }
    here = {key: name for key, name in classes.items() if _FILES.get(key, _CONFIG) == file}
    _add_auto_map(content, here)
    if file == _FILES["AutoProcessor"]:  # whose parts have theirs inside
        for auto_class, part in _INSIDE.items():
            if auto_class in classes and part in content:
                inside = {auto_class: classes[auto_class]}
                _add_auto_map(content[part], inside)
                here |= inside
    write_json(folder / file, content)
    return _write_modules(folder, here.values(), root)


def _add_auto_map(config: dict[str, Any], classes: Mapping[str, str]) -> None:
    for auto_class, name in classes.items():
        module, _, class_name = name.rpartition(".")
        flat = f"{flat_name(module)}.{class_name}"
        # A tokenizer's is the pair (slow, fast); transformers reads ours in either place.
        entry = [flat, None] if auto_class == "AutoTokenizer" else flat
        config["auto_map"] = {**config.get("auto_map", {}), auto_class: entry}


def _write_modules(folder: Path, classes: Iterable[str], root: Path) -> set[str]:
    """Write the modules of classes, and all that they import, flat into a folder."""
    sources = flat_modules({flat_name(name.rpartition(".")[0]) for name in classes}, root)
    for name, source in sources.items():
        path = folder / f"{name}.py"
        if not path.is_file() or path.read_text("utf-8") != source:
            write_atomic(path, source)
    return {f"{name}.py" for name in sources}
