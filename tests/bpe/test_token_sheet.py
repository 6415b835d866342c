"""The sheet of tokens: real pixels where there is a decoder, and labels that stand apart."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
from checkpoint_fixtures import tiny_checkpoint
from PIL import Image, ImageDraw

from being_vl import ImageBPE
from being_vl.bpe.drawing import save_image, token_sheet
from being_vl.cli import main
from being_vl.hub.checkpoint import save_checkpoint


def test_labels_do_not_overprint(monkeypatch):
    """Tokens one cell wide, with ids of six digits."""
    codes = 100_000
    bpe = ImageBPE(np.array([[code, code, 1, 0] for code in range(99)]), codes)
    boxes = []
    write = ImageDraw.ImageDraw.text

    def text(self, at, label, **options):
        boxes.append(self.textbbox(at, label))
        write(self, at, label, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    sheet = token_sheet(bpe, range(codes, codes + 99))
    assert len(boxes) == 99 and max(right for _, _, right, _ in boxes) <= sheet.width
    for number, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[number + 1 :]:
            assert right < other[0] or other[2] < left or bottom < other[1] or other[3] < top


def test_tokens_in_the_pixels_of_the_decoder(tmp_path):
    model, processor = tiny_checkpoint()
    save_checkpoint(model, processor, tmp_path / "checkpoint")
    png = tmp_path / "tokens.png"
    assert (
        main(["inspect", str(tmp_path / "checkpoint"), "--tokens", "1", "--output", str(png)]) == 0
    )
    bpe = processor.tokenizer.image_bpe
    cells = bpe.cells(bpe.codebook_size)  # code 0 twice, side by side
    assert [(row, col) for row, col, _ in cells] == [(0, 0), (0, 1)]
    grid = np.array([[code for _, _, code in cells]])
    expected = np.kron(
        np.asarray(processor.decode_image(bpe.encode(grid), 1, 2, visual=True)), np.ones((4, 4, 1))
    )
    sheet = np.asarray(Image.open(png)).astype(float)
    places = [
        (row, col)
        for row in range(sheet.shape[0] - 15)
        for col in range(40)
        if np.array_equal(sheet[row : row + 16, col : col + 32], expected)
    ]
    assert len(places) == 1  # a cell of 4 × 4 pixels, four times enlarged


def test_what_a_token_does_not_cover_is_white():
    hook = ImageBPE(np.array([[0, 1, 0, 1], [3, 2, 1, 1]]), 3)  # 0 1 / . 2
    seen = []

    def pixels(codes):
        seen.append(codes.tolist())
        return np.kron(codes[..., None] * 100 + np.zeros(3), np.ones((20, 20, 1))).astype(np.uint8)

    sheet = np.asarray(token_sheet(hook, [4], pixels=pixels))
    assert seen == [[[0, 1], [0, 2]]]
    values = {tuple(value) for value in sheet[-50:-10, 10:50].reshape(-1, 3).tolist()}
    assert {(0, 0, 0), (100, 100, 100), (200, 200, 200), (255, 255, 255)} == values
    assert (sheet[-30:-10, 10:30] == 255).all()  # the cell below the first


def test_an_image_that_cannot_be_written_whole_leaves_nothing(tmp_path, monkeypatch):
    def save(image, path, **options):
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", save)
    png = tmp_path / "tokens.png"
    with pytest.raises(OSError, match=f"No space left on device: '{png}'"):
        save_image(Image.new("RGB", (4, 4)), png)
    assert not list(tmp_path.iterdir())
