"""Loading of the parts that options name; errors give the option, the name and the reason."""

from __future__ import annotations

import os
from typing import Any

from jsonargparse import Namespace

from ..files import check_model_folder, check_regular, place, reading

_REASON = 200  # characters of what the Hub's client says


def check_part(option: str, source: str, *files: str) -> None:
    """Refuse a name that leads nowhere, before anything slow; one of `files`, by default config.json, must be there."""
    from transformers.utils import cached_file

    from ..hub.part import place_on_hub

    files = files or ("config.json",)

    if os.path.exists(source):
        if not os.path.isdir(source):
            raise ValueError(f"{option} {source}: must be a folder or an id on the Hub, got a file")
        if not any(os.path.exists(os.path.join(source, file)) for file in files):
            raise ValueError(f"{option} {source}: the folder has no {files[0]}")
        for folder in (source, os.path.join(source, "vq_model")):
            if os.path.isdir(folder):
                check_model_folder(folder)
        return
    name, options = place_on_hub(source, {})
    reasons = []
    for file in files:
        try:
            cached_file(name, file, **options)
            return
        except (OSError, ValueError) as error:
            reasons.append(" ".join(str(error).split())[:_REASON])
    raise OSError(
        f"{option} {source}: no folder of that name, and not to be had from the Hub: {reasons[0]}"
    )


def check_device(name: str) -> None:
    """Refuse a --device that torch does not know or this machine does not have, before anything slow."""
    import torch

    try:
        device = torch.device(name)
        if device.type == "cuda":
            # Asked without initializing it, which forked workers would not survive.
            count = torch.cuda.device_count()
            if (device.index or 0) >= count:
                raise ValueError(f"--device {name}: this machine has {count} of that kind")
        else:
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device {name}: {reason}") from None


def load_vocabulary(option: str, source: str) -> Any:
    """The ImageBPE in a folder, a file, or a repository on the Hub."""
    from ..bpe.image_bpe import ImageBPE

    path = place(source)
    if path.exists() and not path.is_dir():
        check_regular(path)
    if path.is_file() and path.suffix != ".json":
        raise ValueError(f"{option} {source}: must be a folder with image_bpe.json, or that file")
    if path.is_dir() and not (path / "image_bpe.json").exists():
        raise ValueError(f"{option} {source}: the folder has no image_bpe.json")
    if not path.exists() and source.count("/") != 1:
        raise FileNotFoundError(f"{option} {source}: no such folder or file")
    return ImageBPE.from_pretrained(str(path.parent) if path.is_file() else source)


def load_quantizer(source: str, image_processor: str | None = None) -> tuple[Any, Any]:
    """A quantizer in evaluation mode, and the image processor that gives its pixels.

    The processor is the named one, else the quantizer's own, else the default at its resolution.
    """
    from ..quantizers.image_processing_being_vl import BeingVLImageProcessor
    from ..quantizers.quantizer import image_processor_for
    from ..quantizers.quantizer import load_quantizer as load

    if ":" not in source:  # package.module:name of an object of the user's own
        check_part("--quantizer", source, "config.json", "model_index.json")
    with reading(source):
        model = load(source)
    if image_processor is not None:
        # A whole checkpoint holds its image processor in processor_config.json.
        whole = os.path.exists(os.path.join(image_processor, "processor_config.json"))
        file = "processor_config.json" if whole else "preprocessor_config.json"
        check_part("--image-processor", image_processor, file)
        with reading(image_processor):
            return model, BeingVLImageProcessor.from_pretrained(image_processor)
    with reading(source):
        return model, image_processor_for(source, model.config)


def load_speaker(args: Namespace) -> Any:
    """The checkpoint of `chat` and `demo`, which answers as their options say."""
    check_part("checkpoint", args.checkpoint)
    from ..demo.conversation import load_speaker as load

    names = ("device", "max_new_tokens", "temperature", "top_p")
    return load(args.checkpoint, **{name: args[name] for name in names})


def check_array(path: str) -> None:
    """Refuse NumPy files that are no plain array, and say what is expected."""
    expected = (
        "expected an .npy array of integers (N, H, W); grids of several sizes go into parquet shards, as "
        "being_vl.codes.shard_files.write_shard writes them"
    )
    if path.endswith(".npz"):
        raise ValueError(f"{path}: an archive of arrays; {expected}")
    import numpy as np

    check_regular(path)
    try:
        np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # the header is Python's, and numpy's parser raises nearly any type
        kind = "an array of Python objects" if "object" in str(error).lower() else "no .npy array"
        raise ValueError(f"{path}: {kind} ({error}); {expected}") from None


def open_codes(source: str, codebook_size: int | None, imported: Any, *, verify: bool) -> Any:
    """The codes of --codes: an .npy file's name, which is mapped when it is read, else `CodeShards`.

    Args:
        codebook_size: K; None where the shards are to say it.
        imported: the shard that other files of arrays are written to, to be read from there.
    """
    from ..codes.imported import holds_arrays, import_codes
    from ..codes.shards import CodeShards

    if not place(source).exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    if source.endswith((".npz", ".npy")):
        check_array(source)
    if not holds_arrays(source):
        return CodeShards(source, codebook_size=codebook_size, verify=verify)
    if verify:
        raise ValueError(
            f"--verify: {source} holds arrays; the shards of being-vl encode have checksums"
        )
    if codebook_size is None:
        raise ValueError(f"{source}: a {place(source).suffix} file needs --codebook-size")
    if source.endswith(".npy"):
        return source
    return CodeShards(import_codes(source, imported, codebook_size=codebook_size))


def marked_frames(shards: Any, *, key_frame_interval: int | None = None) -> Any:
    """The grids of `CodeShards` of videos, marked with repeat codes, to train or measure a vocabulary on."""
    from ..bpe.repeats import MarkedFrames

    starts = [video.start for video in shards.videos()]
    return MarkedFrames(shards, starts, shards.codebook_size, key_frame_interval=key_frame_interval)
