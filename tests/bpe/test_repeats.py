"""Repeat codes: exact on clips of every size, and a vocabulary that says which code they are."""

import json

import numpy as np
import pytest

import being_vl
from being_vl.bpe import (
    ImageBPE,
    decode_frames,
    encode_frames,
    mark_repeats,
    naive,
    restore_repeats,
)


def clip(rng, side=12, longest=9):
    """Frames of which a random share of cells changes; the dtype is a random one that holds the codes."""
    count, height, width = (int(n) for n in rng.integers(1, [longest + 1, side + 1, side + 1]))
    num_codes = int(rng.choice([1, 2, 5, 255, 256, 32768, 65536, 1 << 20]))
    frames = rng.integers(0, num_codes, (count, height, width))
    keep = rng.random(frames.shape) < rng.random()
    for t in range(1, count):
        frames[t][keep[t]] = frames[t - 1][keep[t]]
    holds = [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint64]
    holds = [dtype for dtype in holds if np.iinfo(dtype).max >= num_codes - 1]
    return frames.astype(holds[rng.integers(len(holds))]), num_codes


def test_worked_example():
    """Two cells, four frames, K = 9: the second repeats its left cell, the third both, the fourth is a key frame."""
    frames = np.array([[[1, 2]], [[1, 3]], [[1, 3]], [[1, 3]]])
    marked = mark_repeats(frames, 9, key_frame_interval=3)
    assert marked.tolist() == [[[1, 2]], [[9, 3]], [[9, 9]], [[1, 3]]]
    assert restore_repeats(marked, 9).tolist() == frames.tolist()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_is_the_law_and_exact(seed, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr("being_vl.bpe._jit.HAS_NUMBA", False)
    rng = np.random.default_rng(seed)
    for _ in range(250):
        frames, num_codes = clip(rng)
        interval = None if rng.random() < 0.4 else int(rng.integers(1, 5))
        marked = mark_repeats(frames, num_codes, key_frame_interval=interval)
        assert marked.tolist() == naive.mark_repeats(frames.tolist(), num_codes, interval)
        np.testing.assert_array_equal(restore_repeats(marked, num_codes), frames)
        assert naive.restore_repeats(marked.tolist(), num_codes) == frames.tolist()


@pytest.mark.parametrize("compiled", [True, False])
def test_pieces_of_a_stream_are_the_whole(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr("being_vl.bpe._jit.HAS_NUMBA", False)
    rng = np.random.default_rng(5)
    for _ in range(150):
        frames, num_codes = clip(rng)
        interval = None if rng.random() < 0.4 else int(rng.integers(1, 5))
        whole = mark_repeats(frames, num_codes, key_frame_interval=interval)
        marked, restored, done = [], [], 0
        while done < len(frames):
            stop = done + int(rng.integers(1, 4))
            before = frames[done - 1] if done else None
            marked.append(
                mark_repeats(
                    frames[done:stop], num_codes,
                    key_frame_interval=interval, before=before, num_before=done,
                )
            )  # fmt: skip
            known = restored[-1][-1] if restored else None
            restored.append(restore_repeats(marked[-1], num_codes, before=known))
            done = stop
        np.testing.assert_array_equal(np.concatenate(marked), whole)
        np.testing.assert_array_equal(np.concatenate(restored), frames)


def test_ten_thousand_clips_of_every_size_come_back():
    """1 × 1 to 64 × 64, as arrays; what a vocabulary adds is tested below and in soak_image_bpe.py."""
    rng = np.random.default_rng(7)
    for number in range(10_000):
        count, height, width = (int(n) for n in rng.integers(1, [7, 65, 65]))
        num_codes = (1, 2, 8192)[number % 3]
        frames = rng.integers(0, num_codes, (1, height, width), dtype=np.int16).repeat(count, 0)
        changed = rng.random(frames.shape) < rng.random()
        frames[changed] = number % num_codes
        interval = None if number % 2 else 1 + number % 5
        marked = mark_repeats(frames, num_codes, key_frame_interval=interval)
        np.testing.assert_array_equal(restore_repeats(marked, num_codes), frames)
        same = frames[1:] == frames[:-1]
        if interval:
            same[interval - 1 :: interval] = False
        np.testing.assert_array_equal(marked[1:] == num_codes, same)


def test_frames_through_a_vocabulary_with_and_without_repeats():
    rng = np.random.default_rng(1)
    frames, num_codes = np.sort(rng.integers(0, 4, (5, 6, 7)), axis=2), 4
    marked = mark_repeats(frames, num_codes, key_frame_interval=2)
    video = ImageBPE.train(list(marked), 30, num_codes + 1, repeat_code=num_codes)
    image = ImageBPE.train(list(frames), 30, num_codes)
    assert (video.quantizer_codebook_size, image.quantizer_codebook_size) == (4, 4)
    for bpe in (video, image):
        ids = encode_frames(bpe, frames, key_frame_interval=2)
        np.testing.assert_array_equal(decode_frames(bpe, ids, 6, 7), frames)
        repeats = bpe.repeating_ids()
        holds = [any(code == 4 for _, _, code in bpe.cells(i)) for i in range(bpe.vocab_size)]
        assert repeats.tolist() == holds and repeats.any() == (bpe is video)
        assert not any(repeats[ids[t]].any() for t in (0, 2, 4))
    with pytest.raises(ValueError, match=r"before must have shape \(6, 7\), got \(6, 6\)"):
        mark_repeats(frames, 4, before=frames[0][:, :6])


def test_through_a_vocabulary(tmp_path):
    """restore(decode(encode(mark(x)))) == x, and the file says which code repeats."""
    rng = np.random.default_rng(0)
    clips = [clip(rng, side=8) for _ in range(60)]
    clips = [frames.astype(int) % 5 for frames, _ in clips]
    marked = [mark_repeats(frames, 5) for frames in clips]
    bpe = ImageBPE.train(
        [frame for one in marked for frame in one], num_merges=60, codebook_size=6, repeat_code=5
    )
    bpe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "image_bpe.json").read_text())["repeat_code"] == 5
    again = ImageBPE.from_pretrained(tmp_path)
    assert again == bpe and again.repeat_code == 5 == again.first(3).repeat_code
    assert again != ImageBPE(bpe.merges, 6) and "repeat_code=5" in repr(again)
    for frames, one in zip(clips, marked, strict=True):
        ids = again.encode_batch(one)
        decoded = np.stack(again.decode_batch(ids, *frames.shape[1:]))
        np.testing.assert_array_equal(restore_repeats(decoded, again.repeat_code), frames)


def test_old_files_stay_as_they_were(tmp_path):
    bpe = ImageBPE([[0, 1, 0, 1]], 2)
    (path,) = bpe.save_pretrained(tmp_path)
    assert "repeat_code" not in open(path).read()
    assert ImageBPE.from_pretrained(path).repeat_code is None


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"repeat_code": 0}, "repeat_code must be the last code, 1, got 0"),
        ({"repeat_code": 1.0}, "repeat_code must be an integer, got 1.0"),
        ({"repeat_code": None}, "repeat_code must be an integer, got None"),
    ],
)
def test_a_file_that_names_another_code(tmp_path, changes, message):
    (path,) = ImageBPE([], 2, repeat_code=1).save_pretrained(tmp_path)
    fields = json.loads(open(path).read())
    assert fields["repeat_code"] == 1
    (tmp_path / "image_bpe.json").write_text(json.dumps(fields | changes))
    with pytest.raises(ValueError, match=message):
        ImageBPE.from_pretrained(path)


@pytest.mark.parametrize(
    "frames, options, message",
    [
        (
            np.zeros((2, 2), int),
            {},
            r"codes must have shape \(frames, height, width\), got \(2, 2\)",
        ),
        (np.zeros((1, 2, 2)), {}, "codes must hold integers, got dtype float64"),
        (np.full((2, 1, 3), 5), {}, r"codes\[0, 0, 0\] is 5, but codes lie in \[0, 5\)"),
        (np.array([[[0]], [[-1]]]), {}, r"codes\[1, 0, 0\] is -1"),
        (
            np.zeros((1, 1, 1), int),
            {"key_frame_interval": True},
            "key_frame_interval must be an integer of at least 1, got True",
        ),
    ],
)
def test_mark_names_what_is_wrong(frames, options, message):
    with pytest.raises(ValueError, match=message):
        being_vl.mark_repeats(frames, 5, **options)


def test_restore_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"codes\[0, 0, 1\] is 5.*in the first frame"):
        being_vl.restore_repeats(np.array([[[0, 5]]]), 5)
    with pytest.raises(ValueError, match=r"codes\[1, 0, 1\] is 6, but codes lie in \[0, 6\)"):
        being_vl.restore_repeats(np.array([[[0, 1]], [[0, 6]]]), 5)
