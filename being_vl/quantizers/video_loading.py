"""video files → RGB frames with their times: what the video processor and the commands share.

Source: transformers' conventions (`VideoMetadata`, sampling by `fps` or `num_frames`). It differs in that PyAV is
what decodes, or Pillow for GIF, WebP and APNG; that formats which name other files or addresses (playlists) are not
opened; that sizes are checked before a frame is decoded; and that whatever goes wrong becomes one error that names
the file.
"""

import io
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
from transformers.video_utils import VideoMetadata

from ..files import check_regular
from .image_loading import MAX_IMAGE_PIXELS, UnreadableImageError, download, short_name, to_rgb

MAX_VIDEO_FRAMES = 1 << 17  # of a file; 72 minutes at 30 a second
MAX_SAMPLED_BYTES = 1 << 31  # of the frames that are kept, 8 bits a value
MAX_VIDEO_BYTES = 1 << 32  # of a file that is downloaded

PYAV_HINT = "reading video files needs PyAV: pip install being-vl[video]"
# The demuxers of files of their own. Others (hls, concat, dash …) open what the file names.
_FORMATS = "mov,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,ogg,asf,gif,ivf,h264,hevc,m4v,mjpeg,yuv4mpegpipe"
_ANIMATIONS = re.compile(rb"GIF8|\x89PNG|RIFF....WEBP", re.DOTALL)

VideoSource = str | os.PathLike | bytes | BinaryIO


class UnreadableVideoError(ValueError):
    """A video that cannot be turned into RGB frames; the message names it and says why."""


@dataclass
class FrameMetadata(VideoMetadata):
    """transformers' metadata, with the time of each frame that was kept.

    Args:
        frame_times: seconds from the first frame of the video, as the file has them; None where unknown, and
            then `timestamps` follows from `frames_indices` and `fps`, as everywhere.
    """

    frame_times: list[float] | None = None

    @property
    def timestamps(self) -> list[float]:
        """Seconds of the sampled frames."""
        return super().timestamps if self.frame_times is None else list(self.frame_times)


def sample_indices(
    total: int, rate: float | None, *, fps: float | None = None, num_frames: int | None = None
) -> np.ndarray:
    """Which of `total` frames to keep, int64, ascending: evenly, from the first; all without fps and num_frames.

    Args:
        total: frames of the video.
        rate: frames a second of the video, needed with `fps`.
        fps: frames to keep a second.
        num_frames: frames to keep, at most.

    Raises:
        ValueError: both are given, one is not positive, or `fps` without a rate.
    """
    if fps is not None and num_frames is not None:
        raise ValueError(f"give fps or num_frames, not both: got {fps} and {num_frames}")
    if fps is not None:
        if not fps > 0:
            raise ValueError(f"fps must be positive, got {fps}")
        if not rate:
            raise ValueError("fps needs the frame rate of the video (video_metadata), got none")
        num_frames = max(1, int(total / rate * fps))
    if num_frames is None or num_frames >= total:
        return np.arange(total)
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    return np.arange(num_frames) * total // num_frames


def load_video(
    source: VideoSource,
    *,
    fps: float | None = None,
    num_frames: int | None = None,
    max_pixels: int = MAX_IMAGE_PIXELS,
    name: str | None = None,
) -> tuple[np.ndarray, FrameMetadata]:
    """Read a video file.

    Args:
        source: a path, an http(s) address, the bytes of a file, or an open binary file.
        fps, num_frames: which frames to keep, see `sample_indices`.
        max_pixels: of a frame.
        name: what errors call it; by default its path.

    Returns:
        uint8 (T, height, width, 3), upright, and what is known of them.

    Raises:
        UnreadableVideoError: missing, no video, damaged, too large, too long, or frames of several sizes.
        ImportError: PyAV is not installed.
        ValueError: see `sample_indices`.
    """
    sample_indices(1, 1.0, fps=fps, num_frames=num_frames)  # says what is wrong with them
    name, file = _opened(source, name)
    with file:
        try:
            look, read = _look_at_av, _av_frames
            if _ANIMATIONS.match(file.read(12)):
                look, read = _look_at_animation, _animation_frames
            file.seek(0)
            total, rate, size = look(file, max_pixels)
            if not total:
                raise UnreadableVideoError("it has no frames")
            # A damaged file may hold fewer frames than its packets promise: then once more, with their number.
            for _ in range(2):
                wanted = sample_indices(total, rate, fps=fps, num_frames=num_frames)
                if len(wanted) * size[0] * size[1] * 3 > MAX_SAMPLED_BYTES:
                    raise UnreadableVideoError(
                        f"{len(wanted)} frames of {size[1]}×{size[0]} pixels are more than "
                        f"{MAX_SAMPLED_BYTES} bytes: sample fewer (fps, num_frames)"
                    )
                frames = read(file, wanted, max_pixels)
                if len(frames) == len(wanted) or not frames:
                    break
                total = max(frames) + 1
        except ImportError:
            raise
        except Exception as error:  # damaged files make decoders raise nearly any type
            text = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
            known = isinstance(error, (UnreadableVideoError, UnreadableImageError))
            reason = text if known else f"not a readable video: {text or type(error).__name__}"
            raise UnreadableVideoError(f"{name}: {reason}") from error
    if not frames:
        raise UnreadableVideoError(f"{name}: not a readable video: none of its frames decodes")
    return _stacked(frames, name, total, rate)


def _stacked(
    frames: Mapping[int, tuple[float, np.ndarray]], name: str, total: int, rate: float | None
) -> tuple[np.ndarray, FrameMetadata]:
    shapes = sorted({pixels.shape[:2] for _, pixels in frames.values()})
    if len(shapes) > 1:
        raise UnreadableVideoError(f"{name}: its frames are of several sizes, {shapes[:3]}")
    height, width = shapes[0]
    metadata = FrameMetadata(
        total_num_frames=total,
        fps=rate,
        width=width,
        height=height,
        duration=total / rate if rate else None,
        video_backend="pyav",
        frames_indices=sorted(frames),
        frame_times=[frames[index][0] for index in sorted(frames)],
    )
    return np.stack([frames[index][1] for index in sorted(frames)]), metadata


def _opened(source: VideoSource, name: str | None) -> tuple[str, BinaryIO]:
    if isinstance(source, bytes):
        return name or f"<{len(source)} bytes>", io.BytesIO(source)
    if not isinstance(source, (str, os.PathLike)):
        return name or str(getattr(source, "name", "<file>")), source
    path = os.fspath(source)
    name = name or short_name(path)
    try:
        if path.startswith(("http://", "https://")):
            return name, io.BytesIO(download(path, max_bytes=MAX_VIDEO_BYTES))
        path = path.removeprefix("file://")
        check_regular(path)
        return name, open(path, "rb")
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error).removeprefix(
            f"{short_name(path)}: "
        )
        raise UnreadableVideoError(f"{name}: not a readable video: {reason}") from error


def _look_at_animation(
    file: BinaryIO, max_pixels: int
) -> tuple[int, float | None, tuple[int, int]]:
    """Of a GIF, WebP or APNG, by Pillow: number of frames, their rate, and (height, width)."""
    image = PIL.Image.open(file)
    _check_size(image.width, image.height, max_pixels)
    total = getattr(image, "n_frames", 1)
    if total > MAX_VIDEO_FRAMES:
        raise UnreadableVideoError(f"more than {MAX_VIDEO_FRAMES} frames")
    end = max(_ends(image), default=0.0)
    rate = total / end if end else None
    return total, rate, (image.height, image.width)


def _ends(image: PIL.Image.Image) -> Iterator[float]:
    """When each frame ends, in seconds."""
    end = 0.0
    for index in range(getattr(image, "n_frames", 1)):
        image.seek(index)
        image.load()  # the duration of a WebP's frame is known once it is decoded
        end += float(image.info.get("duration") or 0) / 1000
        yield end


def _animation_frames(
    file: BinaryIO, wanted: np.ndarray, max_pixels: int
) -> dict[int, tuple[float, np.ndarray]]:
    file.seek(0)
    image = PIL.Image.open(file)
    keep, frames, start = set(wanted.tolist()), {}, 0.0
    for index, end in enumerate(_ends(image)):
        if index in keep:
            frames[index] = (start, np.asarray(to_rgb(image, max_pixels=max_pixels)))
        start = end
    return frames


def _open_av(file: BinaryIO) -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(PYAV_HINT) from error
    file.seek(0)
    return av.open(file, options={"format_whitelist": _FORMATS}, metadata_errors="replace")


def _look_at_av(file: BinaryIO, max_pixels: int) -> tuple[int, float | None, tuple[int, int]]:
    """Of all other files: frames (packets, which cost little to count), their rate, and (height, width)."""
    with _open_av(file) as container:
        if not container.streams.video:
            raise UnreadableVideoError("it has no video stream")
        stream = container.streams.video[0]
        width, height = stream.codec_context.width, stream.codec_context.height
        _check_size(width, height, max_pixels)
        total = 0
        for packet in container.demux(stream):
            total += packet.size > 0
            if total > MAX_VIDEO_FRAMES:
                raise UnreadableVideoError(f"more than {MAX_VIDEO_FRAMES} frames")
        rate = float(stream.average_rate) if stream.average_rate else None
        return total, rate, (height, width)


def _av_frames(
    file: BinaryIO, wanted: np.ndarray, max_pixels: int
) -> dict[int, tuple[float, np.ndarray]]:
    keep, frames, origin = set(wanted.tolist()), {}, None
    with _open_av(file) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate) if stream.average_rate else None
        for index, frame in enumerate(container.decode(stream)):
            time = frame.time if frame.time is not None else index / (rate or 1)
            origin = time if origin is None else origin
            _check_size(frame.width, frame.height, max_pixels, f"frame {index} has ")
            if index in keep:
                pixels = frame.to_ndarray(format="rgb24")
                turns = round(frame.rotation / 90) % 4
                frames[index] = (
                    float(time - origin),
                    np.ascontiguousarray(np.rot90(pixels, turns)),
                )
            if index >= wanted[-1]:
                break
    return frames


def _check_size(width: int, height: int, max_pixels: int, what: str = "") -> None:
    if width * height > max_pixels:
        raise UnreadableVideoError(
            f"{what}{width}×{height} pixels, more than the limit of {max_pixels}"
        )
