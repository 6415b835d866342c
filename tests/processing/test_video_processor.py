"""Videos through the processor: as files, arrays, frames and codes; in chats; and back."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from checkpoint_fixtures import CODEBOOK_SIZE, GRID, tiny_checkpoint
from PIL import Image
from transformers import AutoProcessor
from video_fixtures import moving_square, smooth_clips, video_bpe, video_checkpoint, write_webp

from being_vl import BeingVLVideoProcessor, restore_repeats
from being_vl.bpe import decode_frames
from being_vl.hub.checkpoint import save_checkpoint
from being_vl.processing.chat_messages import require_sanitizing


@pytest.fixture(scope="module")
def checkpoint():
    return video_checkpoint()


@pytest.fixture(scope="module")
def processor(checkpoint):
    return checkpoint[1]


def texts(processor, ids) -> str:
    return processor.tokenizer.decode(ids)


def test_the_vocabulary_has_a_place_for_videos(checkpoint) -> None:
    model, processor = checkpoint
    tokenizer, config = processor.tokenizer, model.config
    assert tokenizer.video_token == "<video>" == processor.video_token
    assert (config.bov_token_id, config.eov_token_id, config.video_token_id) == (
        tokenizer.bov_token_id,
        tokenizer.eov_token_id,
        tokenizer.video_token_id,
    )
    assert config.codebook_size == CODEBOOK_SIZE + 1 == model.image_bpe.repeat_code + 1


def test_codes_become_frames_between_their_marks(processor) -> None:
    """The ids of a video are its frames' own, and give the codes back."""
    (clip,) = smooth_clips(1, seed=3)
    (ids,) = processor(text="what <video> is", video_codes=clip).input_ids
    text = texts(processor, ids)
    assert text.startswith("<|begin_of_text|>what <|bov|><|boi|>") and text.endswith("<|eov|> is")
    assert text.count("<|boi|>") == text.count("<|eoi|>") == len(clip)
    ids = np.array(ids)
    inside = ids[list(ids).index(processor.bov_token_id) : list(ids).index(processor.eov_token_id)]
    for given in (inside, inside[1:], inside[inside >= processor._layout.first_code_id]):
        codes = processor.decode_video_codes(given, len(clip), GRID, GRID)
        np.testing.assert_array_equal(codes, clip)
    assert processor.decode_video_codes(inside, len(clip)).shape == clip.shape
    bpe = processor.tokenizer.image_bpe
    assert bpe.repeating_ids()[
        inside[inside >= processor._layout.first_code_id] - processor._layout.first_code_id
    ].any()


def test_files_arrays_and_frames_are_one_video(processor, tmp_path) -> None:
    frames = moving_square()
    path = write_webp(tmp_path / "clip.webp", frames)
    forms = [
        str(path), path, path.read_bytes(), {"path": str(path), "bytes": None}, frames,
        frames.transpose(0, 3, 1, 2), [Image.fromarray(frame) for frame in frames], list(frames),
    ]  # fmt: skip
    wanted = processor(text="<video>", videos=forms[0], num_frames=3).input_ids
    codes, _ = processor.quantize_videos(frames, num_frames=3)
    np.testing.assert_array_equal(codes[0], np.stack(processor.quantize(list(frames[[0, 2, 4]]))))
    for form in forms[1:]:
        assert processor(text="<video>", videos=form, num_frames=3).input_ids == wanted
        assert processor(text="<video>", videos=[form], num_frames=3).input_ids == wanted
    assert processor(text="<video>", video_codes=codes).input_ids == wanted
    only = processor(videos=[path], num_frames=3, return_metadata=True)
    np.testing.assert_array_equal(only["video_codes"][0], codes[0])
    assert only["video_metadata"][0].timestamps == [0.0, 0.5, 1.0]
    assert only["video_metadata"][0].fps == 4.0


def test_each_text_has_its_own_videos_and_images(processor) -> None:
    clips, frames = smooth_clips(3), moving_square()
    batch = processor(
        text=["<video> and <image>", "none", "<video><video>"],
        images=[[frames[0]], [], []],
        video_codes=[[clips[0]], [], clips[1:]],
        padding=True,
        return_tensors="pt",
        return_mm_token_type_ids=True,
    )
    types, ids = batch["mm_token_type_ids"], batch["input_ids"]
    assert [sorted(set(row.tolist())) for row in types] == [[0, 1, 2], [0], [0, 2]]
    videos = (ids == processor.bov_token_id).sum(-1).tolist()
    assert videos == [1, 0, 2]
    boi = types[0][ids[0] == processor.boi_token_id]
    assert boi.tolist() == [2] * 5 + [1]
    for given in ([[clips[0]], [clips[1]], [clips[2]]], clips[:2]):
        with pytest.raises(ValueError, match=r"number of video tokens.*\[1, 0, 2\]"):
            processor(text=["<video>", "none", "<video><video>"], video_codes=given)


def test_timestamps_stand_before_their_frames(processor, tmp_path) -> None:
    path = write_webp(tmp_path / "clip.webp", moving_square(8))
    (ids,) = processor(text="<video>", videos=str(path), fps=1, timestamps=True).input_ids
    text = texts(processor, ids)
    assert text.split("<|boi|>")[0].endswith("<|bov|><0.0 seconds>")
    assert "<|eoi|><1.0 seconds><|boi|>" in text
    codes, metadata = processor.quantize_videos(str(path), fps=1)
    again = processor(text="<video>", video_codes=codes, video_metadata=metadata, timestamps=True)
    assert again.input_ids == [ids]
    with pytest.raises(ValueError, match="timestamps need to know when each frame was"):
        processor(text="<video>", video_codes=codes, timestamps=True)
    with pytest.raises(ValueError, match="fps needs the frame rate of the video"):
        processor(text="<video>", videos=moving_square(), fps=1)


def test_key_frames_hold_no_repeats(processor) -> None:
    (clip,) = smooth_clips(1, frames=6, seed=1)
    bpe, layout = processor.tokenizer.image_bpe, processor._layout
    (ids,) = processor(text="<video>", video_codes=clip, key_frame_interval=2).input_ids
    ids = np.array(ids)
    frames = np.split(ids, np.flatnonzero(ids == processor.boi_token_id))[1:]
    frames = [f[(f >= layout.first_code_id)] - layout.first_code_id for f in frames]
    repeats = [bool(bpe.repeating_ids()[frame].any()) for frame in frames]
    assert repeats == [False, True, False, True, False, True]
    np.testing.assert_array_equal(decode_frames(bpe, frames, GRID, GRID), clip)


def test_chat_with_a_file(processor, tmp_path) -> None:
    path = write_webp(tmp_path / "clip.webp", moving_square())
    content = [{"type": "video", "video": str(path)}, {"type": "text", "text": "Is it red?"}]
    messages = [{"role": "user", "content": content}]
    batch = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt",
        processor_kwargs={"num_frames": 2},
    )  # fmt: skip
    text = texts(processor, batch["input_ids"][0])
    assert "<|eov|>Is it red?" in text and text.count("<|boi|>") == 2
    frames = processor.decode_video(processor._last_video(batch["input_ids"][0]), 2)
    assert [frame.size for frame in frames] == [(16, 16)] * 2
    (found,) = processor.post_process_multimodal_output(
        batch["input_ids"], generation_mode="video", num_frames=2
    )
    assert [frame.tobytes() for frame in found] == [frame.tobytes() for frame in frames]
    try:
        require_sanitizing()
    except ValueError as error:  # before transformers 5.20
        pytest.skip(str(error))
    clean = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt",
        processor_kwargs={"num_frames": 2}, sanitize_control_tokens=True,
    )  # fmt: skip
    assert clean["input_ids"].tolist() == batch["input_ids"].tolist()


def test_saved_and_loaded_again(processor, checkpoint, tmp_path) -> None:
    processor.video_processor.num_frames, processor.video_processor.timestamps = 3, True
    try:
        save_checkpoint(*checkpoint, tmp_path / "checkpoint", remote_code=True)
    finally:
        processor.video_processor.num_frames, processor.video_processor.timestamps = None, False
    again = AutoProcessor.from_pretrained(tmp_path / "checkpoint")
    assert type(again.video_processor) is BeingVLVideoProcessor
    assert (again.video_processor.num_frames, again.video_processor.timestamps) == (3, True)
    path = write_webp(tmp_path / "clip.webp", moving_square())
    (ids,) = again(text="<video>", videos=str(path)).input_ids
    (wanted,) = processor(text="<video>", videos=str(path), num_frames=3, timestamps=True).input_ids
    assert ids == wanted
    config = json.loads((tmp_path / "checkpoint" / "processor_config.json").read_text())
    assert config["video_processor"]["video_processor_type"] == "BeingVLVideoProcessor"
    code = f"""
import sys
sys.modules["being_vl"] = sys.modules["numba"] = None  # numba would compile the kernels anew
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained({str(tmp_path / "checkpoint")!r}, trust_remote_code=True)
print(processor(text="<video>", videos={str(path)!r}).input_ids[0])
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert json.loads(answer.stdout.splitlines()[-1]) == ids


def test_bound_of_a_video(processor) -> None:
    found = processor._get_num_multimodal_tokens(video_sizes=[(4, 20, 30)], image_sizes=[(9, 9)])
    assert found["num_video_tokens"] == [4 * (GRID * GRID + 2) + 2]
    assert found["num_image_tokens"] == [GRID * GRID + 2]


def test_what_is_refused(processor) -> None:
    (clip,) = smooth_clips(1)
    bpe = video_bpe()
    with pytest.raises(ValueError, match=r"clips \(T, h, w\), got an array of shape \(4, 4\)"):
        processor(text="<video>", video_codes=clip[0])
    with pytest.raises(ValueError, match=f"is {CODEBOOK_SIZE}, but codes lie in"):
        processor(text="<video>", video_codes=np.full_like(clip, CODEBOOK_SIZE))
    with pytest.raises(ValueError, match=rf"image_codes\[0\].*is {CODEBOOK_SIZE}"):
        processor(text="<image>", image_codes=np.full_like(clip[0], CODEBOOK_SIZE))
    with pytest.raises(ValueError, match="ids must be of 6 frames, got 5"):
        (ids,) = processor(text="<video>", video_codes=clip).input_ids
        processor.decode_video_codes(ids, 6, GRID, GRID)
    for wrong in (-1, bpe.vocab_size):
        for size in ((), (GRID, GRID)):
            with pytest.raises(ValueError, match=rf"visual id {wrong} at position 2 is not in"):
                processor.decode_video_codes([0, 0, wrong], 1, *size, visual=True)
    with pytest.raises(ValueError, match="truncation cuts an image"):
        processor(text="<video>", video_codes=clip, truncation=True, max_length=12)
    repeated = np.flatnonzero(bpe.repeating_ids()[: bpe.codebook_size])
    with pytest.raises(ValueError, match="repeat a frame before"):
        processor.decode_image(np.repeat(repeated, GRID * GRID), GRID, GRID, visual=True)
    with pytest.raises(ValueError, match="pass videos or video_codes, not both"):
        processor(text="<video>", videos=[moving_square()], video_codes=[clip])


def test_a_vocabulary_of_images_says_what_it_lacks() -> None:
    _, processor = tiny_checkpoint()
    assert not hasattr(processor, "video_processor")
    with pytest.raises(ValueError, match="no videos: its vocabulary has no video_token"):
        processor(text="<video>", videos=[moving_square()])
    messages = [{"role": "user", "content": [{"type": "video", "video": "clip.mp4"}]}]
    with pytest.raises(ValueError, match=r"content\[0\]: a video, but the vocabulary has no"):
        processor.apply_chat_template(messages, tokenize=True)


def test_restored_codes_are_those_of_the_quantizer(processor) -> None:
    frames = moving_square()
    (codes,), _ = processor.quantize_videos(frames)
    bpe = processor.tokenizer.image_bpe
    (ids,) = processor(text="<video>", videos=frames).input_ids
    visual = [
        i - processor._layout.first_code_id for i in ids if i >= processor._layout.first_code_id
    ]
    sizes = bpe.token_sizes()[visual].cumsum()
    ends = [int(np.searchsorted(sizes, GRID * GRID * (t + 1))) + 1 for t in range(len(frames))]
    marked = bpe.decode_batch(np.split(np.array(visual), ends[:-1]), GRID, GRID)
    np.testing.assert_array_equal(restore_repeats(np.stack(marked), CODEBOOK_SIZE), codes)


def test_ids_of_a_video_are_integers(processor) -> None:
    ids = np.zeros(GRID * GRID) + 0.5
    with pytest.raises(ValueError, match="ids must hold integers, got dtype float64"):
        processor.decode_video(ids, 1, GRID, GRID, visual=True)
    with pytest.raises(ValueError, match="generated_outputs must hold integers"):
        processor.post_process_multimodal_output([ids], generation_mode="video", num_frames=1)
