"""A part of a checkpoint: pushes the whole of it, and takes its code along where the checkpoint carries code.

Source: the methods are those of transformers' `PushToHubMixin` and of its custom code
(`register_for_auto_class`), with their signatures. They differ in that a repository is never half a checkpoint
(transformers uploads what one `save_pretrained` has just written), and in that the code that a checkpoint
carries is generated from the package (transformers copies flat folders only).

The parts lie low in the package and know nothing of the Hub, so this is the one module of hub/ that they
import, and `_hub` the one place that reaches up to the rest of it.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

VQ_FOLDER = "vq_model"

_HUB_OPTIONS = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download")
_PUSH_OPTIONS = (
    "repo_id", "private", "token", "revision", "create_pr", "commit_message", "commit_description", "tags",
)  # fmt: skip


def _hub() -> Any:
    from .pushing import PartOnHub

    return PartOnHub


class Origin(NamedTuple):
    """Where an object was loaded from: an absolute folder, or a repository, its commit and a folder in it."""

    name: str
    revision: str | None = None
    subfolder: str = ""

    @classmethod
    def of(
        cls, name: str | os.PathLike, revision: str | None = None, subfolder: str | None = None
    ) -> Origin:
        """Of the arguments of a `from_pretrained`; a folder stays the same wherever the process goes."""
        folder = absolute_folder(name)
        if folder == os.fspath(name) and not os.path.isdir(name):
            return cls(folder, revision, (subfolder or "").strip("/"))
        return cls(os.path.join(folder, subfolder) if subfolder else folder, revision)


class PushesCheckpoint:
    """`push_to_hub` that carries the whole checkpoint; for classes with a `save_pretrained`.

    What the object does not hold itself comes from the checkpoint that it was loaded from, and only where
    the repository has nothing of that name. An object that was not loaded from a checkpoint pushes itself
    alone.
    """

    _folder = ""  # of a checkpoint that holds what the object saves

    def _checkpoint_source(self) -> Origin | None:
        """Where the checkpoint lies that the object was loaded from; None if it was built."""
        raise NotImplementedError

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Upload the checkpoint that this object belongs to, with the object as it is now, in one commit.

        Model, tokenizer with `image_bpe.json`, processor, `vq_model/`, card and results go together,
        whichever of them is pushed. The object's own files replace the repository's; the others come from
        the checkpoint that the object was loaded from, where the repository has none of that name. If the
        commit replaces weights, results of the old ones leave the repository with them.

        Args:
            repo_id: `name` or `namespace/name`; made if it does not exist.
            options: `commit_message`, `commit_description`, `private`, `token`, `revision`, `create_pr` and
                `tags`, as in transformers; and those of `save_pretrained`, such as `max_shard_size` and
                `variant`.

        Returns:
            huggingface_hub's `CommitInfo`.
        """
        push = {"repo_id": repo_id, **_taken(options)}
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **options)  # type: ignore[attr-defined]
            return _hub()(self).push(folder, **push)


class CheckpointPart(PushesCheckpoint):
    """The same for classes of transformers, before which it stands; their code is saved with them.

    Code is saved with a class after `register_for_auto_class()`, which transformers calls too when it has
    loaded a checkpoint's own code, and with an object whose checkpoint carried code.
    """

    _carries_code = False

    def _checkpoint_source(self) -> Origin | None:
        """As transformers remembers it of configurations."""
        name = self.name_or_path  # type: ignore[attr-defined]
        return Origin.of(name, getattr(self, "_commit_hash", None)) if name else None

    @classmethod
    def register_for_auto_class(cls, auto_class: str | type | None = None) -> None:
        """Save the code of this class with its objects from now on, for `trust_remote_code=True`."""
        if cls.__module__.partition(".")[0] == __name__.partition(".")[0]:
            cls._carries_code = True
        else:  # somebody's subclass: transformers copies their module, which imports being_vl
            given = () if auto_class is None else (auto_class,)
            super().register_for_auto_class(*given)  # type: ignore[misc]

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *args: Any,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Save as the class of transformers does; with `push_to_hub=True`, push the whole checkpoint."""
        push = _taken(kwargs) if push_to_hub else {}
        before = _weights_in(save_directory)
        saved = super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        if kwargs.get("is_main_process", True):
            _remove_stale(save_directory, before)
            part = _hub()(self)
            part.save_code(save_directory)
            if push_to_hub:
                part.push(save_directory, **push)
        return saved


class ModelPart(CheckpointPart):
    """The same for a model, which remembers where its checkpoint lies, wherever the process goes."""

    _source: Origin | None = None

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, subfolder: str = "", **kwargs: Any
    ) -> Any:
        """As the class of transformers does."""
        kwargs |= pinned(pretrained_model_name_or_path, kwargs)
        loaded = super().from_pretrained(  # type: ignore[misc]
            pretrained_model_name_or_path, *args, subfolder=subfolder, **kwargs
        )
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # output_loading_info=True
        if pretrained_model_name_or_path is not None and model.name_or_path:
            checkpoint = re.sub(rf"(^|/){cls._folder}/?$", "", subfolder or "")
            # Adapters name a base, which is another repository.
            asked = {} if model.name_or_path != str(pretrained_model_name_or_path) else kwargs
            commit = commit_named(asked.get("revision"))
            model._source = Origin.of(model.name_or_path, commit, checkpoint)
            model.name_or_path = absolute_folder(model.name_or_path)  # PEFT writes it into adapters
        return loaded

    def _checkpoint_source(self) -> Origin | None:
        return self._source


class QuantizerPart(CheckpointPart):
    """The same for a quantizer, which a checkpoint keeps in `vq_model/` and its own repository at the root."""

    _folder = VQ_FOLDER


class QuantizerModelPart(QuantizerPart, ModelPart):
    """Both."""


def absolute_folder(name: str | os.PathLike) -> str:
    """A folder's absolute path, for use when the working directory is another; a repository's name as it is."""
    return os.path.abspath(name) if os.path.isdir(name) else os.fspath(name)


def hub_options(options: Mapping[str, Any], *more: str) -> dict[str, Any]:
    """Of the options of a `from_pretrained` those that say where its files are, and `more`; None is not given."""
    return {name: options[name] for name in (*_HUB_OPTIONS, *more) if options.get(name) is not None}


def place_on_hub(name: str | os.PathLike, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A name and the options of a `from_pretrained`; of `owner/name/folder`, a folder in a repository, the folder
    becomes the option `subfolder`."""
    name, options = os.fspath(name), dict(options)
    parts = name.split("/", 2)
    if len(parts) == 3 and re.fullmatch(r"[\w][\w.-]*/[\w.-]+", "/".join(parts[:2])):
        if not os.path.exists(name):
            folders = (parts[2].strip("/"), options.get("subfolder"))
            options["subfolder"] = "/".join(filter(None, folders))
            return "/".join(parts[:2]), options
    return name, options


def pinned(name: Any, options: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """The option `revision` of a `from_pretrained`, resolved, so that all that follows is of one commit.

    It prints as what was asked for. {} where there is nothing to resolve, and before transformers 5.18, which
    cannot: there each file is of the commit that the revision names when it is read.
    """
    try:
        from transformers.utils.hub import resolve_revision
    except ImportError:
        return {}

    keys = ("token", "local_files_only", "cache_dir")
    where = {key: options[key] for key in keys if key in options}
    revision = resolve_revision(name, options.get("revision"), **where)
    return {} if revision is None else {"revision": revision}


def commit_named(revision: str | None) -> str | None:
    """The commit that a pinned revision stands for."""
    return getattr(revision, "resolved", revision)


def commit_of(file: str | os.PathLike | None) -> str | None:
    """The commit in the path of a file of the Hub's cache; None for any other file."""
    match = re.search(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]", os.fspath(file or ""))
    return match[1] if match else None


def variant_of(path: str) -> str:
    """The variant of a file of weights or of their index: "fp16" of `model.fp16.safetensors`, else "".

    >>> variant_of("model-00001-of-00002.safetensors"), variant_of("model.safetensors.index.fp16.json")
    ('', 'fp16')
    """
    match = re.fullmatch(r"[^.]+\.([^.]+?)(-\d{5}-of-\d{5})?\.safetensors", path) or re.fullmatch(
        r"[^.]+\.safetensors\.index\.([^.]+)\.json", path
    )
    return match[1] if match else ""


def weight_names(variant: str) -> tuple[str, str]:
    """Names of the single file of a model's weights, and of the index where there are several."""
    single, index = "model.safetensors", "model.safetensors.index.json"
    if not variant:
        return single, index
    return single.replace("model", f"model.{variant}"), index.replace("index", f"index.{variant}")


def _weights_in(folder: str | os.PathLike) -> dict[str, tuple[int, int]]:
    """Single files and indices of weights, with what changes when they are written anew."""
    if not os.path.isdir(folder):
        return {}
    entries = [
        e for e in os.scandir(os.fspath(folder)) if e.name in weight_names(variant_of(e.name))
    ]
    return {entry.name: (entry.stat().st_mtime_ns, entry.inode()) for entry in entries}


def _remove_stale(folder: str | os.PathLike, before: dict[str, tuple[int, int]]) -> None:
    """Remove a single file beside the index that a save has just written, or the other way round.

    transformers removes the shards of an earlier save and leaves these, which it then loads, or not.
    """
    now = _weights_in(folder)
    for name in now:
        if before.get(name) == now[name]:
            others = {*weight_names(variant_of(name))} - {name}
            if any(other in now and before.get(other) != now[other] for other in others):
                os.unlink(os.path.join(folder, name))


def _taken(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options of a push out of those of a `save_pretrained`."""
    return {name: options.pop(name) for name in _PUSH_OPTIONS if name in options}
