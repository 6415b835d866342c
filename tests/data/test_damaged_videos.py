"""Damaged and hostile video files as PyAV reads them: each is read, or is one error that names it, soon."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from checkpoint_fixtures import patch_vq
from video_fixtures import moving_square, video_checkpoint

from being_vl.cli import main
from being_vl.codes.shards import CodeShards
from being_vl.quantizers import video_loading
from being_vl.quantizers.video_loading import UnreadableVideoError, load_video

av = pytest.importorskip("av", reason='needs pip install "being-vl[video]"')

KINDS = {"mp4": "mpeg4", "webm": "libvpx-vp9", "mkv": "ffv1", "avi": "mjpeg", "gif": "gif"}
PIXELS = {"ffv1": "bgr0", "mjpeg": "yuvj420p", "gif": "rgb8"}


def write(path: Path, frames: np.ndarray, rate: int = 4) -> Path:
    """The frames as a file of the kind that its name says."""
    codec = KINDS[path.suffix[1:]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = PIXELS.get(codec, "yuv420p")
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    return {kind: write(folder / f"a.{kind}", moving_square(8, 32)).read_bytes() for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files(whole, kind) -> None:
    frames, metadata = load_video(whole[kind])
    assert frames.shape == (8, 32, 32, 3) and metadata.total_num_frames == 8
    differs = np.abs(frames[3].astype(int) - moving_square(8, 32)[3]).mean()
    assert differs < (
        26 if kind == "gif" else 12
    )  # lossy codecs; the GIF is dithered to 256 fixed colours
    assert metadata.timestamps == pytest.approx(np.arange(8) / 4, abs=0.02)


def outcome(path: Path) -> str:
    """What comes of a file, within seconds: "read", or the error, one line that begins with its name."""
    started = time.process_time()
    try:
        frames, _ = load_video(path, num_frames=4)
    except UnreadableVideoError as error:
        text = str(error)
        assert text.startswith(f"{path}: ") and "\n" not in text and len(text) < 400
    else:
        assert 1 <= len(frames) <= 4 and frames.shape[3] == 3
        text = "read"
    assert time.process_time() - started < 5
    return text


@pytest.mark.parametrize("kind", KINDS)
def test_cut_and_flipped_files(whole, kind, tmp_path) -> None:
    rng = np.random.default_rng(sorted(KINDS).index(kind))
    data, path = whole[kind], tmp_path / f"bad.{kind}"
    found = []
    for share in (0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        found.append(outcome(path))
    for _ in range(40):
        flipped = np.frombuffer(data, np.uint8).copy()
        at = rng.integers(0, len(flipped), rng.integers(1, 9))
        flipped[at] ^= (1 << rng.integers(0, 8, len(at))).astype(np.uint8)
        path.write_bytes(flipped.tobytes())
        found.append(outcome(path))
    path.write_bytes(rng.bytes(len(data)))
    assert outcome(path) != "read"
    assert "read" in found and len(set(found)) > 1  # some of each


def patched(data: bytes, box: bytes, offset: int, value: bytes) -> bytes:
    """An mp4 with other bytes in the last box of a name, `offset` after the name."""
    at = data.rindex(box) + 4 + offset
    return data[:at] + value + data[at + len(value) :]


def test_lies_of_headers(whole, tmp_path) -> None:
    """Durations, sizes and counts that an mp4 declares; offsets are those of ISO 14496-12, version 0 of each box."""
    mp4, largest = whole["mp4"], b"\x7f\xff\xff\xff"
    cases = {
        "long.mp4": (patched(mp4, b"mvhd", 16, largest), None),
        "longer.mp4": (patched(mp4, b"mdhd", 16, largest), None),
        "timeless.mp4": (patched(mp4, b"mdhd", 12, bytes(4)), None),
        "still.mp4": (patched(mp4, b"stts", 12, bytes(4)), None),
        "large.mp4": (patched(mp4, b"mp4v", 24, b"\xff\xff\xff\xff"), None),
        "many.mp4": (patched(mp4, b"stsz", 8, largest), "not a readable video"),
        "huge.mp4": (patched(mp4, b"stsz", 4, largest), None),
        "empty.mp4": (patched(mp4, b"stsz", 8, bytes(4)), None),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        found = outcome(tmp_path / name)
        assert message is None or message in found, (name, found)


def test_large_frames_and_many_are_refused_before_they_are_decoded(whole, tmp_path, monkeypatch):
    path = write(tmp_path / "wide.mp4", np.zeros((1, 48, 64, 3), np.uint8))
    with pytest.raises(
        UnreadableVideoError, match=r"wide\.mp4: 64×48 pixels, more than the limit of 3000"
    ):
        load_video(path, max_pixels=3000)
    monkeypatch.setattr(video_loading, "MAX_VIDEO_FRAMES", 7)
    for kind, data in whole.items():
        with pytest.raises(UnreadableVideoError, match="more than 7 frames"):
            load_video(data)
        assert kind
    monkeypatch.setattr(video_loading, "MAX_VIDEO_FRAMES", 100)
    monkeypatch.setattr(video_loading, "MAX_SAMPLED_BYTES", 5 * 32 * 32 * 3)
    assert len(load_video(whole["mkv"], num_frames=5)[0]) == 5
    with pytest.raises(
        UnreadableVideoError, match=r"6 frames of 32×32 pixels are more than .* sample fewer"
    ):
        load_video(whole["mkv"], num_frames=6)


def test_files_that_name_others_are_not_opened(whole, tmp_path) -> None:
    """Playlists and scripts, whatever their name says."""
    (tmp_path / "clip.mp4").write_bytes(whole["mp4"])
    address = "http://127.0.0.1:9/clip.mp4"
    texts = {
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}\n#EXT-X-ENDLIST\n",
        "list.mp4": f"#EXTM3U\n#EXTINF:1,\n{tmp_path}/clip.mp4\n#EXT-X-ENDLIST\n",
        "concat.mp4": f"ffconcat version 1.0\nfile '{tmp_path}/clip.mp4'\n",
        "concat.mkv": f"concat:{tmp_path}/clip.mp4|{tmp_path}/clip.mp4",
        "dash.mpd": f"<?xml version='1.0'?><MPD><Period><BaseURL>{address}</BaseURL></Period></MPD>",
        "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        assert "not a readable video" in outcome(tmp_path / name)
    for name in (f"concat:{tmp_path}/clip.mp4", f"subfile,,start,0,end,9,,:{tmp_path}/clip.mp4"):
        with pytest.raises(UnreadableVideoError, match="No such file"):
            load_video(name)


def test_sound_alone(tmp_path) -> None:
    assert outcome(write_sound(tmp_path / "a.mp4")).endswith("a.mp4: it has no video stream")


def test_commands_and_processor_name_the_file(whole, tmp_path, capsys) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "good.mp4").write_bytes(whole["mp4"])
    (clips / "cut.mp4").write_bytes(whole["mp4"][:200])
    write_sound(clips / "sound.mp4")
    (clips / "text.webm").write_text("no video")
    patch_vq().save_pretrained(tmp_path / "quantizer")
    words = ["encode", "--quantizer", f"{tmp_path}/quantizer", "--videos", str(clips), "--output",
             f"{tmp_path}/codes", "--device", "cpu", "--workers", "0"]  # fmt: skip
    assert main(words) == 2
    assert "cut.mp4: not a readable video" in capsys.readouterr().err
    assert main([*words, "--on-error", "skip"]) == 0
    lines = map(json.loads, (tmp_path / "codes" / "skipped.jsonl").read_text().splitlines())
    reasons = {line["image_id"]: line["reason"] for line in lines}
    assert set(reasons) == {"cut.mp4", "sound.mp4", "text.webm"}
    assert "it has no video stream" in reasons["sound.mp4"]
    assert [video.video_id for video in CodeShards(tmp_path / "codes").videos()] == ["good.mp4"]
    _, processor = video_checkpoint()
    assert processor(text="<video>", videos=str(clips / "good.mp4"), num_frames=2).input_ids
    with pytest.raises(ValueError, match=r"cut\.mp4: not a readable video"):
        processor(text="<video>", videos=str(clips / "cut.mp4"))
