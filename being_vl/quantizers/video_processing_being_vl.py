"""videos → pixel values of their frames.

Source: transformers' `BaseVideoProcessor`, whose options and outputs it keeps. It differs in that it needs neither
torchvision nor torchcodec: files are read by PyAV or Pillow (`video_loading.py`), and each frame is preprocessed as
the checkpoint's image processor does images, so that a frame and the image of it have the same codes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from ..hub.part import CheckpointPart
from .image_loading import MAX_IMAGE_PIXELS
from .image_processing_being_vl import BeingVLImageProcessor, ChameleonPreprocessing, check_cells
from .video_loading import FrameMetadata, load_video, sample_indices


class BeingVLVideosKwargs(VideosKwargs, total=False):
    """Options beyond those of every video processor.

    Args:
        timestamps: the processor writes the time of each frame before it, as text: `<1.5 seconds>`.
        key_frame_interval: one in so many frames holds no repeat code; by default the first alone.
        max_image_pixels, size_divisor, aspect_ratio_buckets: as of [`BeingVLImageProcessor`].
    """

    timestamps: bool | None
    key_frame_interval: int | None
    max_image_pixels: int | None
    size_divisor: int | None
    aspect_ratio_buckets: list[list[int]] | list[tuple[int, int]] | None


class BeingVLVideoProcessor(ChameleonPreprocessing, CheckpointPart, BaseVideoProcessor):
    """Samples frames, and preprocesses each as [`BeingVLImageProcessor`] does an image.

    Videos come as paths, addresses, bytes, open files, rows of a `Video` column, arrays (T, height, width, 3) or
    (T, 3, height, width), or lists of frames; see `flat_videos`. Returns a `BatchFeature` with
    `pixel_values_videos`, a list of float32 (T, 3, height, width), and, where asked for, `video_metadata`.

    Raises:
        UnreadableVideoError: (a ValueError) a video cannot be read; the message names it.
        ValueError: an option is out of range.
    """

    valid_kwargs: Any = BeingVLVideosKwargs

    do_sample_frames = True
    num_frames = None
    fps = None
    timestamps = False
    key_frame_interval = None

    def __init__(self, **kwargs: Unpack[BeingVLVideosKwargs]) -> None:
        super().__init__(**kwargs)
        interval = self.key_frame_interval
        if interval is not None and interval < 1:
            raise ValueError(f"key_frame_interval must be at least 1, got {interval}")

    @classmethod
    def like(cls, image_processor: Any, **options: Any) -> BeingVLVideoProcessor:
        """The video processor whose frames an image processor would preprocess alike."""
        fields = image_processor.to_dict()
        taken = {key: fields[key] for key in cls.valid_kwargs.__annotations__ if key in fields}
        return cls(**{**taken, **options})

    def _checkpoint_source(self) -> tuple[str, str | None] | None:
        return None

    def preprocess(self, videos: Any, **kwargs: Unpack[BeingVLVideosKwargs]) -> BatchFeature:
        """See the class; one video, or a list of them."""
        names = self.valid_kwargs.__annotations__
        unknown = sorted(kwargs.keys() - {*names, "return_tensors"})
        if unknown:
            raise ValueError(f"{unknown[0]} is no option of {type(self).__name__}")
        options: dict[str, Any] = {
            name: kwargs.get(name, getattr(self, name, None)) for name in names
        }
        sampling = {}
        if options["do_sample_frames"] is not False:
            # One given with the call replaces whichever of the two is set.
            given = {key: kwargs[key] for key in ("fps", "num_frames") if kwargs.get(key)}
            sampling = given or {key: options[key] for key in ("fps", "num_frames")}
        limit = options["max_image_pixels"] or MAX_IMAGE_PIXELS
        videos = flat_videos(videos)
        described = as_metadata(options["video_metadata"], len(videos))
        frames, metadata = [], []
        for video, known in zip(videos, described, strict=True):
            pixels, found = _frames_of(video, known, sampling, limit)
            frames.append(pixels)
            metadata.append(found)
        to_pixels = self.frame_processor(**options)
        data: dict[str, Any] = {
            "pixel_values_videos": [
                np.stack(to_pixels(list(video), return_tensors=None)["pixel_values"])
                for video in frames
            ]
        }
        if options.get("return_metadata"):
            data["video_metadata"] = metadata
        return BatchFeature(
            data,
            tensor_type=kwargs.get("return_tensors"),
            skip_tensor_conversion=["video_metadata"],
        )

    def frame_processor(self, **options: Any) -> BeingVLImageProcessor:
        """The image processor of the frames, with options of a call or this processor's own."""
        kept = BeingVLImageProcessor.valid_kwargs.__annotations__
        own = {name: options.get(name, getattr(self, name, None)) for name in kept}
        return BeingVLImageProcessor(
            **{name: value for name, value in own.items() if value is not None}
        )

    def fetch_videos(self, video_url_or_urls: Any, sample_indices_fn: Any = None) -> Any:
        """Frames and metadata of what is named by a path or an address, all frames of it."""
        if isinstance(video_url_or_urls, (list, tuple)):
            return tuple(zip(*map(self.fetch_videos, video_url_or_urls), strict=True))
        return load_video(video_url_or_urls)


def flat_videos(videos: Any, _depth: int = 0) -> list[Any]:
    """What a user passes as videos → a list with one entry a video: a file, an array (T, …) or a list of frames.

    A list of texts is a list of files; a list of lists of texts, files for each sample; three levels deep, texts are
    files of frames.

    Raises:
        ValueError: none of these.
    """
    if _is_file(videos):
        return [videos]
    if hasattr(videos, "ndim") and hasattr(videos, "shape"):
        if videos.ndim == 5:
            return list(videos)
        if videos.ndim == 4:
            return [videos]
    elif isinstance(videos, (list, tuple)) and videos:
        if all(_is_frame(item) for item in videos):
            return [list(videos)]
        if _depth == 2 and all(isinstance(item, (str, os.PathLike)) for item in videos):
            return [list(videos)]
        return [video for item in videos for video in flat_videos(item, _depth + 1)]
    elif isinstance(videos, (list, tuple)):
        return []
    shape = f" of shape {tuple(videos.shape)}" if hasattr(videos, "shape") else ""
    raise ValueError(
        "a video is a file, an array (T, height, width, 3) or a list of frames, got "
        f"{type(videos).__name__}{shape}"
    )


def _is_file(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool({"path", "bytes"} & set(value))
    return isinstance(value, (str, bytes, os.PathLike)) or hasattr(value, "read")


def _is_frame(value: Any) -> bool:
    return isinstance(value, Image.Image) or (hasattr(value, "ndim") and value.ndim == 3)


def as_metadata(metadata: Any, count: int) -> list[FrameMetadata | None]:
    """One entry a video, None where nothing is known of it."""
    if metadata is None:
        return [None] * count
    if isinstance(metadata, (VideoMetadata, Mapping)):
        metadata = [metadata]
    flat = [one for item in metadata for one in (item if isinstance(item, list) else [item])]
    if len(flat) != count:
        raise ValueError(f"video_metadata has {len(flat)} entries for {count} videos")
    return [one if isinstance(one, FrameMetadata) else FrameMetadata(**one) for one in flat]


def _frames_of(
    video: Any, known: FrameMetadata | None, sampling: dict[str, Any], max_pixels: int
) -> tuple[Any, FrameMetadata]:
    if isinstance(video, Mapping):  # a row of a Video column
        found = video.get("bytes")
        video = video.get("path") if found is None else found
    if _is_file(video):
        return load_video(video, max_pixels=max_pixels, **sampling)
    if len(video) == 0:
        raise ValueError("a video has no frames")
    if known is None:
        known = FrameMetadata(total_num_frames=len(video), frames_indices=list(range(len(video))))
    if (
        known.frames_indices is not None
        and len(known.frames_indices) == len(video)
        and (known.total_num_frames != len(video) or not any(sampling.values()))
    ):
        return video, known  # sampled before
    indices = sample_indices(len(video), known.fps, **sampling)
    times = known.frame_times
    kept = FrameMetadata(
        **{
            **{name: known[name] for name in known},
            "total_num_frames": len(video),
            "frames_indices": indices.tolist(),
            "frame_times": None if times is None else [times[index] for index in indices],
        }
    )
    return [video[index] for index in indices.tolist()], kept


def read_frames(
    source: Any, processor: BeingVLVideoProcessor, *, downsampling: int, name: str
) -> tuple[np.ndarray, tuple[float, ...]]:
    """A video file → pixel values of its frames, float32 (T, 3, height, width), and their times in seconds.

    Args:
        source, name: as of `load_video`.
        processor: its `fps` and `num_frames` say which frames.
        downsampling: of the quantizer, which must divide both sides.

    Raises:
        UnreadableVideoError: as of `load_video`.
        ValueError: a size after preprocessing that the quantizer cannot encode.
    """
    frames, metadata = load_video(
        source,
        fps=processor.fps,
        num_frames=processor.num_frames,
        max_pixels=processor.max_image_pixels or MAX_IMAGE_PIXELS,
        name=name,
    )
    pixels = np.stack(processor.frame_processor()(list(frames))["pixel_values"])
    check_cells(pixels, downsampling, name)
    return pixels, tuple(metadata.timestamps)
