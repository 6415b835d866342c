"""being-vl inspect, stats and convert, and the figures and drawings behind them."""

import json
import pickle
from math import log2

import numpy as np
import pytest
from image_bpe_fixtures import random_rules
from PIL import Image

from being_vl.bpe.drawing import draw_tokens, token_map, token_text
from being_vl.bpe.image_bpe import ImageBPE
from being_vl.bpe.legacy import LegacyImageBPE
from being_vl.cli import main
from being_vl.studies.analysis.vocabulary_stats import default_curve, vocabulary_stats

WORKED = ([[0, 1, 0, 1], [2, 2, 1, 0]], 2)


@pytest.fixture
def folder(tmp_path):
    ImageBPE(*WORKED).save_pretrained(tmp_path / "bpe")
    np.save(
        tmp_path / "codes.npy", np.array([[[0, 1, 0], [0, 1, 1]], [[1, 1, 0], [1, 0, 1]]], np.int16)
    )
    return tmp_path


def test_stats_by_hand():
    """Grid one gives 3 0 1, grid two 1 1 0 1 2: eight tokens for twelve cells; ids 0 to 3 are used 2, 4,
    1 and 1 times, so a token carries 2/8·2 + 4/8·1 + 2·(1/8·3) = 1.75 bits. Codes 0 and 1 occur 5 and 7
    times. With rank 0 alone grid one is 2 0 2 1."""
    grids = np.array([[[0, 1, 0], [0, 1, 1]], [[1, 1, 0], [1, 0, 1]]])
    stats = vocabulary_stats(ImageBPE(*WORKED), grids, curve=[0, 1, 2])
    assert (stats["grids"], stats["cells"], stats["tokens"]) == (2, 12, 8)
    assert stats["tokens_per_grid"] == 4 and stats["compression_ratio"] == 1.5
    assert stats["bits_per_token"] == pytest.approx(1.75)
    assert stats["bits_per_cell"] == pytest.approx(1.75 * 8 / 12)
    assert stats["code_bits_per_cell"] == pytest.approx(
        -5 / 12 * log2(5 / 12) - 7 / 12 * log2(7 / 12)
    )
    assert stats["codes_used"] == stats["merges_used"] == 1
    assert stats["cells_in_merges"] == pytest.approx(6 / 12)
    assert stats["merge_uses"] == [1, 1]
    assert stats["merge_directions"] == {"horizontal": 1, "vertical": 1, "both": 0}
    assert stats["rank_exponent"] > 0
    assert [row["tokens"] for row in stats["tokens_by_cells"]] == [6, 1, 1]
    assert [point["tokens_per_grid"] for point in stats["compression_by_rank"]] == [6, 4.5, 4]


def test_default_curve():
    assert default_curve(0) == [0]
    assert default_curve(100) == [0, 100]
    assert default_curve(8192) == [0, 256, 512, 1024, 2048, 4096, 8192]


def test_stats_of_pair_mode_have_no_shapes():
    stats = vocabulary_stats(
        ImageBPE([[0, 0, 0, 0]], 1, merge_rule="pair"), np.zeros((1, 2, 2), int)
    )
    assert stats["tokens"] == 2 and "tokens_by_cells" not in stats


def test_stats_command(folder, capsys):
    arguments = ["stats", str(folder / "bpe"), "--codes", str(folder / "codes.npy")]
    assert main([*arguments, "--json", "--output", str(folder / "out")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["tokens"] == 8
    assert json.loads((folder / "out" / "stats.json").read_text()) == printed
    assert main(["stats", "--config", str(folder / "out" / "stats.yaml")]) == 0
    capsys.readouterr()
    assert main([*arguments, "--limit", "1"]) == 0
    printed = capsys.readouterr().out
    assert "1 grids, 6 cells, 3 tokens" in printed and "1 horizontal, 1 vertical" in printed


def test_stats_command_reads_parquet(folder, capsys):
    from being_vl.codes.shards import ShardInfo, write_shard

    grids = [np.array([[0, 1, 0], [0, 1, 1]]), np.array([[1, 0]])]
    write_shard(folder / "codes.parquet", ["a", "b"], grids, ShardInfo(codebook_size=2))
    assert (
        main(["stats", str(folder / "bpe"), "--codes", str(folder / "codes.parquet"), "--json"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["tokens"] == 5


def test_stats_command_reads_what_train_bpe_does(folder, capsys):
    """Arrays in other files too, of which nothing is left behind."""
    import torch

    torch.save(torch.from_numpy(np.load(folder / "codes.npy")), folder / "codes.pt")
    before = sorted(path.name for path in folder.iterdir())
    assert main(["stats", str(folder / "bpe"), "--codes", str(folder / "codes.pt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 8
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize(
    "codes, message",
    [
        (np.zeros((2, 2), np.int16), "must hold integers (N, H, W), got int16 (2, 2)"),
        (np.zeros((1, 2, 2)), "must hold integers (N, H, W), got float64"),
        (np.full((1, 2, 2), 2), "grids[0][0, 0] is 2, but codes lie in [0, 2)"),
        (np.zeros((0, 2, 2), int), "bad.npy: must hold grids of codes, got int64 (0, 2, 2)"),
        (np.array([[[None]]]), "an array of Python objects"),
    ],
)
def test_stats_command_refuses_bad_codes(folder, capsys, codes, message):
    np.save(folder / "bad.npy", codes, allow_pickle=True)
    assert main(["stats", str(folder / "bpe"), "--codes", str(folder / "bad.npy")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("being-vl stats: error: ") and message in error


def test_inspect_command(folder, capsys):
    png, dump = folder / "tokens.png", folder / "tokens.txt"
    assert main(["inspect", str(folder / "bpe"), "--output", str(png), "--dump", str(dump)]) == 0
    out = capsys.readouterr().out
    assert "3 (rank 1): 2 and 2 at (1, 0); 4 cells, codes 0 1 0 1\n████\n████" in out
    assert Image.open(png).size[0] == 960
    assert (
        dump.read_text().splitlines()[-1]
        == "3 = 2 + 2 at (1, 0): (0, 0) 0, (0, 1) 1, (1, 0) 0, (1, 1) 1"
    )
    assert main(["inspect", str(folder / "bpe" / "image_bpe.json"), "--json", "--tokens", "1"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["distinct_shapes"] == 2 and answer["ids_by_cells"] == {"2": 1, "4": 1}
    assert answer["tokens"] == [
        {"id": 2, "rank": 0, "rule": [0, 1, 0, 1], "cells": [[0, 0, 0], [0, 1, 1]]}
    ]


def test_inspect_command_without_merges_or_shapes(folder, capsys):
    ImageBPE([], 4).save_pretrained(folder / "none")
    assert main(["inspect", str(folder / "none"), "--output", str(folder / "none.png")]) == 0
    ImageBPE([[0, 0, 0, 0]], 1, merge_rule="pair").save_pretrained(folder / "pair")
    assert main(["inspect", str(folder / "pair")]) == 2
    assert "tokens have no fixed shape" in capsys.readouterr().err
    assert main(["inspect", str(folder / "nowhere")]) == 2


def test_convert_command(tmp_path, capsys):
    path = tmp_path / "vbpe.pkl"
    path.write_bytes(pickle.dumps([((0, 1), 2), ((2, 2), 3)]))
    assert main(["convert", str(path), "--output", str(tmp_path / "legacy"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["decodable"] is False and answer["num_merges"] == 2
    assert LegacyImageBPE.from_pretrained(answer["file"]).pairs.tolist() == [[0, 1], [2, 2]]
    assert (tmp_path / "legacy" / "convert.yaml").exists()
    path.write_bytes(pickle.dumps(print))
    assert main(["convert", str(path), "--output", str(tmp_path / "legacy")]) == 2
    assert "is not allowed; only lists, tuples and ints" in capsys.readouterr().err


def test_token_map_and_borders():
    """Tokens 3 0 1 of a 2x3 grid: a border right of the square, and one between 0 and 1."""
    owner = token_map(ImageBPE(*WORKED), [3, 0, 1], 2, 3)
    assert owner.tolist() == [[0, 0, 1], [0, 0, 2]]
    drawn = np.array(draw_tokens(Image.new("RGB", (30, 20)), owner)).any(axis=2)
    expected = np.zeros((20, 30), bool)
    expected[:, 20] = True
    expected[10, 20:30] = True
    np.testing.assert_array_equal(drawn, expected)


def test_text_and_sheet_show_every_cell():
    rng = np.random.default_rng(0)
    bpe = ImageBPE(random_rules(rng, 3, 50), 3)
    for visual_id in range(bpe.vocab_size):
        assert "".join(token_text(bpe, visual_id)).count("██") == len(bpe.cells(visual_id))
    assert token_text(ImageBPE([[0, 0, 1, 0], [1, 0, 1, -1]], 1), 2) == ["··██", "████"]


def test_inspect_image_command(tmp_path, capsys):
    from checkpoint_fixtures import tiny_checkpoint

    from being_vl.hub.checkpoint import save_checkpoint

    model, processor = tiny_checkpoint()
    save_checkpoint(model, processor, tmp_path / "checkpoint")
    gradient = np.linspace(0, 255, 24 * 32 * 3).reshape(24, 32, 3).astype(np.uint8)
    Image.fromarray(gradient).save(tmp_path / "photo.png")
    png = tmp_path / "drawn.png"
    arguments = ["inspect", "--image", str(tmp_path / "photo.png"), str(tmp_path / "checkpoint")]
    assert main([*arguments, "--output", str(png), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    (grid,) = processor.quantize([Image.fromarray(gradient)])
    bpe = processor.tokenizer.image_bpe
    assert answer["ids"] == bpe.encode(grid).tolist() and answer["tokens"] == len(answer["ids"])
    np.testing.assert_array_equal(
        bpe.decode(answer["ids"], answer["height"], answer["width"]), grid
    )
    width, height = Image.open(png).size
    assert grid.shape == (4, 4)  # of 4 x 4 pixels: small images are enlarged to 320 at least
    side = 320
    assert (width, height) == (3 * side + 40, side + 36)  # gaps of 10, titles of side // 20
    assert main([*arguments[:2], str(tmp_path / "none.png"), arguments[3]]) == 2
    assert "none.png" in capsys.readouterr().err
