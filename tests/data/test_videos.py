"""Videos at scale: files → shards of frames → vocabulary → rows of ids, and what is refused on the way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_fixtures import CODEBOOK_SIZE, GRID, llama_3_tokenizer, patch_vq, text_model
from datasets import load_dataset
from video_fixtures import moving_square, write_webp

from being_vl import BeingVLProcessor, ImageBPE
from being_vl.bpe import decode_frames
from being_vl.cli import main
from being_vl.codes.shard_files import Frame, ShardInfo, write_shard
from being_vl.codes.shards import CodeShards
from being_vl.data.codes import CodeIndex, build_index
from being_vl.data.conversations import parse_sample
from being_vl.hub.checkpoint import init_checkpoint, save_checkpoint
from being_vl.quantizers.video_loading import FrameMetadata


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Clips of 3, 6 and 9 frames, their codes, a vocabulary trained on them, and a checkpoint with it."""
    root = tmp_path_factory.mktemp("videos")
    (root / "clips" / "deep").mkdir(parents=True)
    for number, name in enumerate(("a.webp", "b.webp", "deep/c.webp")):
        write_webp(root / "clips" / name, moving_square(3 * (number + 1), seed=number))
    patch_vq().save_pretrained(root / "quantizer")
    encode(root, root / "codes")
    words = f"train-bpe --codes {root}/codes --output {root}/bpe --num-merges 12 --num-threads 1"
    assert main(words.split()) == 0
    tokenizer = llama_3_tokenizer()
    bpe = ImageBPE.from_pretrained(root / "bpe")
    parts = init_checkpoint(
        text_model(tokenizer), tokenizer, patch_vq(), bpe,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    save_checkpoint(*parts, root / "checkpoint")
    return root


def encode(root: Path, output: Path, *more: str, status: int = 0) -> None:
    words = [
        "encode", "--quantizer", str(root / "quantizer"), "--videos", str(root / "clips"), "--output",
        str(output), "--device", "cpu", "--workers", "0", *more,
    ]  # fmt: skip
    assert main(words) == status


def tokenize(root: Path, rows: list[dict], output: Path, *more: str, status: int = 0) -> list[dict]:
    data = output.with_suffix(".json")
    data.write_text(json.dumps(rows))
    words = [
        "tokenize", "--checkpoint", str(root / "checkpoint"), "--data", str(data), "--codes",
        str(root / "codes"), "--output", str(output), "--workers", "1", *more,
    ]  # fmt: skip
    assert main(words) == status
    if status:
        return []
    return list(load_dataset("arrow", data_files=str(output / "*.arrow"), split="train"))


def turns(question: str, answer: str = "Yes") -> list[dict]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def test_frames_lie_in_the_shards_with_name_number_and_time(folder) -> None:
    shards = CodeShards(folder / "codes")
    assert shards.has_videos and shards.codebook_size == CODEBOOK_SIZE
    found = shards.videos()
    assert [(v.video_id, v.stop - v.start) for v in found] == [
        ("a.webp", 3), ("b.webp", 6), ("deep/c.webp", 9),
    ]  # fmt: skip
    assert found[1].times.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]
    assert shards.image_ids()[:4] == ["a.webp#0", "a.webp#1", "a.webp#2", "b.webp#0"]
    processor = BeingVLProcessor.from_pretrained(folder / "checkpoint")
    (codes,), _ = processor.quantize_videos(str(folder / "clips" / "b.webp"))
    np.testing.assert_array_equal(np.stack(shards[3:9]), codes)
    manifest = json.loads((folder / "codes" / "manifest.json").read_text())
    assert (manifest["videos"], manifest["images"]) == (3, 18)


@pytest.mark.parametrize(
    "more, kept",
    [(["--num-frames", "3"], [[0, 1, 2], [0, 2, 4], [0, 3, 6]]), (["--fps", "2"], [[0], [0, 2, 4], [0, 2, 4, 6]])],
)  # fmt: skip
def test_sampling(folder, tmp_path, more, kept) -> None:
    encode(folder, tmp_path / "codes", *more, "--shard-size", "2")
    times = [v.times for v in CodeShards(tmp_path / "codes").videos()]
    for found, wanted in zip(times, kept, strict=True):
        np.testing.assert_allclose(found, np.array(wanted) / 4)


def test_a_run_goes_on_where_it_stopped(folder, tmp_path) -> None:
    encode(folder, tmp_path / "codes", "--shard-size", "1")
    files = {file.name: file.read_bytes() for file in (tmp_path / "codes").glob("*.parquet")}
    assert len(files) == 3
    (tmp_path / "codes" / sorted(files)[1]).unlink()
    encode(folder, tmp_path / "codes", "--shard-size", "1")
    assert files == {f.name: f.read_bytes() for f in (tmp_path / "codes").glob("*.parquet")}
    encode(folder, tmp_path / "codes", "--shard-size", "1", "--fps", "1", status=2)


def test_vocabulary_and_statistics(folder, capsys) -> None:
    bpe = ImageBPE.from_pretrained(folder / "bpe")
    assert bpe.repeat_code == CODEBOOK_SIZE == bpe.codebook_size - 1
    assert bpe.repeating_ids()[bpe.codebook_size :].any()  # learned from marked frames
    words = f"stats {folder}/bpe --codes {folder}/codes --json --num-threads 1"
    assert main(words.split()) == 0
    assert json.loads(capsys.readouterr().out)["cells"] == 18 * GRID * GRID
    words = f"train-bpe --codes {folder}/codes --output {folder}/plain --num-merges 4 --repeat-code false"
    assert main([*words.split(), "--num-threads", "1"]) == 0
    assert ImageBPE.from_pretrained(folder / "plain").repeat_code is None


def test_dropout_is_refused_where_samples_have_videos(folder, tmp_path, capsys) -> None:
    rows = [{"id": "l", "video": "b.webp", "conversations": turns("<video>\nWhat moves?")}]
    tokenize(folder, rows, tmp_path / "rows", "--dropout", "0.1", status=2)
    assert "video 'b.webp': dropout must be 0 where samples have videos" in capsys.readouterr().err


def test_conversations_about_videos(folder, tmp_path) -> None:
    rows = [
        {"id": "l", "video": "b.webp", "conversations": turns("<video>\nWhat moves?")},
        {"id": "o", "messages": [
            {"role": "user", "content": [
                {"type": "video", "video": "./deep/c.webp"}, {"type": "text", "text": "What moves?"}]},
            {"role": "assistant", "content": "A square"}]},
        {"id": "two", "videos": ["a.webp", "b.webp"], "conversations": turns("<video> or <video>?")},
        {"id": "none", "conversations": turns("Who?")},
    ]  # fmt: skip
    found = tokenize(folder, rows, tmp_path / "rows")
    assert [row["video_ids"] for row in found] == [
        ["b.webp"],
        ["./deep/c.webp"],
        ["a.webp", "b.webp"],
        [],
    ]
    processor = BeingVLProcessor.from_pretrained(folder / "checkpoint")
    bpe, layout = processor.tokenizer.image_bpe, processor._layout
    shards = CodeShards(folder / "codes")
    for row, (start, stop) in zip(found[:2], ((3, 9), (9, 18)), strict=True):
        ids = np.array(row["input_ids"])
        parts = np.split(ids, np.flatnonzero(ids == processor.boi_token_id))[1:]
        frames = [p[(p >= layout.first_code_id)] - layout.first_code_id for p in parts]
        np.testing.assert_array_equal(
            decode_frames(bpe, frames, GRID, GRID), np.stack(shards[start:stop])
        )
    manifest = json.loads((tmp_path / "rows" / "tokenized.json").read_text())
    assert manifest["counts"]["videos"] == 4


def test_a_clip_too_long_is_named_and_never_cut(folder, tmp_path) -> None:
    rows = [
        {"id": name, "video": name, "conversations": turns("<video>")}
        for name in ("a.webp", "deep/c.webp")
    ]
    found = tokenize(folder, rows, tmp_path / "rows", "--max-length", "60", "--on-too-long", "skip")
    assert [row["id"] for row in found] == ["a.webp"]
    (line,) = (tmp_path / "rows" / "skipped.jsonl").read_text().splitlines()
    left_out = json.loads(line)
    assert left_out["id"] == "deep/c.webp" and "max_length is 60" in left_out["reason"]
    tokenize(folder, rows, tmp_path / "again", "--max-length", "60", status=2)


@pytest.mark.parametrize(
    "row, message",
    [
        ({"video": "z.webp", "conversations": turns("<video>")}, "video 'z.webp': no codes for this video"),
        ({"video": "a.webp", "conversations": turns("What?")}, "video has 1 video(s), but the turns have 0 <video>"),
        ({"conversations": turns("<video>")}, "video has 0 video(s), but the turns have 1 <video>"),
        ({"video": "a.webp", "conversations": turns("<video> <|bov|>")}, "spells the special token '<|bov|>'"),
    ],
)  # fmt: skip
def test_rows_that_are_refused(folder, tmp_path, capsys, row, message) -> None:
    tokenize(folder, [row], tmp_path / "rows", status=2)
    assert message in capsys.readouterr().err


def test_files_that_are_no_videos(folder, tmp_path, capsys) -> None:
    """Each is one line in skipped.jsonl, or ends the run by its name."""
    clips = tmp_path / "clips"
    clips.mkdir()
    whole = write_webp(clips / "good.webp", moving_square()).read_bytes()
    (clips / "empty.gif").write_bytes(b"")
    (clips / "cut.webp").write_bytes(whole[: len(whole) // 3])
    (clips / "text.webp").write_text("no video at all")
    (clips / "lies.gif").write_bytes(b"GIF89a" + b"\xff" * 40)
    words = ["encode", "--quantizer", str(folder / "quantizer"), "--videos", str(clips), "--output",
             str(tmp_path / "codes"), "--device", "cpu", "--workers", "0"]  # fmt: skip
    assert main(words) == 2
    assert "cut.webp: " in capsys.readouterr().err
    assert main([*words[:-4], "--workers", "0", "--device", "cpu", "--on-error", "skip"]) == 0
    lines = (tmp_path / "codes" / "skipped.jsonl").read_text().splitlines()
    assert {json.loads(line)["image_id"] for line in lines} == {
        "cut.webp", "empty.gif", "lies.gif", "text.webp",
    }  # fmt: skip
    assert [v.video_id for v in CodeShards(tmp_path / "codes").videos()] == ["good.webp"]


def test_shards_whose_frames_are_out_of_order(tmp_path) -> None:
    grids = [np.zeros((2, 2), int)] * 2
    for frames, message in (
        ([Frame("a", 1, 0.0), Frame("a", 2, 0.0)], "must count from 0"),
        ([Frame("a", 0, 0.0), Frame("b", 1, 0.0)], "'a' must count from 0, one after another"),
        ([Frame("a", 0, 0.0), Frame("a", 0, 0.0)], "video ids must differ, got 'a' twice"),
    ):
        write_shard(tmp_path / "x.parquet", ["0", "1"], grids, ShardInfo(4), frames)
        with pytest.raises(ValueError, match=message):
            CodeShards(tmp_path / "x.parquet").videos()


def test_the_nearest_id_beside_images(folder, tmp_path) -> None:
    """A misspelt video is found among the videos where the index has images, too."""
    grids = [np.zeros((GRID, GRID), np.uint8)] * 2
    quantizer = CodeShards(folder / "codes").quantizer
    info = ShardInfo(
        codebook_size=CODEBOOK_SIZE, quantizer=quantizer, source="s", last=True, skipped=()
    )
    (tmp_path / "images").mkdir()
    write_shard(tmp_path / "images" / "codes-00000-0000.parquet", ["x.png", "y.png"], grids, info)
    files = [*CodeShards(tmp_path / "images").files, *CodeShards(folder / "codes").files]
    one, _ = build_index([str(folder / "codes")], tmp_path / "one.npy")
    assert one.nearest("a.mp4") == "a.webp"
    keys = np.empty(0, [("hash", np.uint64), ("place", np.int64)])
    np.save(tmp_path / "keys.npy", keys)
    both = CodeIndex(files, tmp_path / "keys.npy")
    assert (both.nearest("a.mp4"), both.nearest("x.jpg")) == ("a.webp", "x.png")


def test_images_beside_videos_and_in_answers_are_those_of_the_processor(folder, tmp_path) -> None:
    """`tokenize` puts the tokens of images in after the tokenizer, and those of frames before it."""
    rows = [
        {"image": ["a.webp#1"], "video": "b.webp", "conversations": turns("<video><image> <image>?", "<image> it")},
        {"image": ["b.webp#0", "a.webp#2"], "conversations": turns("<image>?", "so <image>")},
        {"image": ["b.webp#0"], "video": "a.webp", "conversations": turns("<image><video>?", "no <image>")},
    ]  # fmt: skip
    rows[0]["image"] *= 3
    rows[2]["image"] *= 2
    found = tokenize(folder, rows, tmp_path / "rows")
    processor = BeingVLProcessor.from_pretrained(folder / "checkpoint")
    index = build_index(
        [str(folder / "codes")], tmp_path / "index.npy", codebook_size=CODEBOOK_SIZE
    )[0]
    for row, made in zip(rows, found, strict=True):
        given: dict = {"image_codes": [[index.lookup([i])[i] for i in row["image"]]]}
        if "video" in row:
            ((codes, times),) = index.lookup_videos([row["video"]]).values()
            metadata = FrameMetadata(
                total_num_frames=len(codes), frames_indices=list(range(len(codes))), frame_times=times.tolist()
            )  # fmt: skip
            given |= {"video_codes": [[codes]], "video_metadata": [metadata]}
        conversation = parse_sample(row, where="row", number=0)
        expected = processor.apply_chat_template(
            [conversation.messages], tokenize=True, return_dict=True,
            return_assistant_tokens_mask=True, processor_kwargs=given,
        )  # fmt: skip
        assert made["input_ids"] == expected["input_ids"][0]
        assert made["assistant_masks"] == expected["assistant_masks"][0]
        spoken = np.array(made["input_ids"])[np.array(made["assistant_masks"]) == 1]
        assert (spoken == processor.boi_token_id).sum() == 1
