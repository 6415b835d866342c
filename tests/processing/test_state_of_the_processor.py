"""Parts that load on first use: the processor's hash, pickle and files are the same before and after."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from checkpoint_fixtures import tiny_checkpoint
from datasets.fingerprint import Hasher
from PIL import Image
from transformers import AutoProcessor

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    tiny_checkpoint()[1].save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_the_fingerprint_of_datasets_is_stable(folder):
    processor = AutoProcessor.from_pretrained(folder)
    before = Hasher.hash(processor)
    wanted = processor(images=PICTURE, text="<image> a")["input_ids"]
    assert processor._vq.loaded
    assert Hasher.hash(processor) == before
    copied = pickle.loads(pickle.dumps(processor))
    assert not copied._vq.loaded
    assert copied(images=PICTURE, text="<image> a")["input_ids"] == wanted


def _in_place(vq):
    with torch.no_grad():
        vq.get_codebook()[0] += 1


def _permuted(vq):
    vq.codebook.data.copy_(vq.codebook.data.flip(0))


CHANGES = {
    "in place": _in_place,
    "through .data": lambda vq: vq.codebook.data.add_(1),
    "permuted": _permuted,
    "cast": lambda vq: vq.to(torch.bfloat16),
    "replaced": lambda vq: setattr(vq.codebook, "data", vq.codebook.data * 2),
    "loaded": lambda vq: vq.load_state_dict({"codebook": torch.ones_like(vq.codebook)}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_were_written_to_travel(folder, change):
    """Whichever way they were written: none of them needs to pass a hook."""
    processor = AutoProcessor.from_pretrained(folder)
    before = Hasher.hash(processor)
    CHANGES[change](processor.vq_model)
    assert Hasher.hash(processor) != before
    copied = pickle.loads(pickle.dumps(processor))
    assert torch.equal(copied.vq_model.get_codebook(), processor.vq_model.get_codebook())
    assert copied.vq_model.dtype == processor.vq_model.dtype


def test_a_checkpoint_without_a_quantizer_is_saved_again(folder, tmp_path):
    """It is given codes; what is not there is neither asked for nor made."""
    shutil.rmtree(folder / "vq_model")
    processor = AutoProcessor.from_pretrained(folder)
    assert not processor.has_vq_model
    processor.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / "vq_model").exists()
    with pytest.raises(ValueError, match="from a checkpoint without vq_model/"):
        processor(images=PICTURE, text="<image> a")
    grid = np.zeros((2, 2), np.int64)
    assert AutoProcessor.from_pretrained(tmp_path / "again")(image_codes=grid, text="<image>")


def test_whatever_came_with_a_checkpoint_is_saved_untouched(folder, tmp_path, monkeypatch):
    """From a relative path, in another working directory, with the VQ model not loaded yet."""
    wanted = AutoProcessor.from_pretrained(folder)(images=PICTURE, text="<image> a")["input_ids"]
    monkeypatch.chdir(folder.parent)
    processor = AutoProcessor.from_pretrained("checkpoint")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    processor.save_pretrained("saved")
    again = AutoProcessor.from_pretrained("saved")
    assert again(images=PICTURE, text="<image> a")["input_ids"] == wanted
    assert np.array_equal(again.tokenizer.image_bpe.merges, processor.tokenizer.image_bpe.merges)


def test_images_without_a_common_size_are_not_guessed(folder):
    processor = AutoProcessor.from_pretrained(folder)
    grid = np.zeros((2, 8), dtype=np.int64)  # 16 cells, as many as 4 × 4
    ids = processor.tokenizer.encode_codes([grid])[0]
    assert (processor.decode_codes(ids, 2, 8) == grid).all()
    processor.image_processor.do_center_crop = False
    with pytest.raises(ValueError, match="images differ in size: give the height and width"):
        processor.decode_codes(ids)


def test_a_checkpoint_of_images_that_are_not_square_decodes(folder):
    processor = AutoProcessor.from_pretrained(folder)
    processor.image_processor.crop_size = {"height": 8, "width": 32}
    grid = np.arange(16).reshape(2, 8) % 16
    ids = processor.tokenizer.encode_codes([grid])[0]
    assert (processor.decode_codes(ids) == grid).all()
    row = [processor.boi_token_id, *ids, processor.eoi_token_id]
    image = processor.post_process_multimodal_output([row], generation_mode="image")[0]
    assert image.size == (32, 8)


def test_ids_and_codes_are_integers(folder):
    """What is none is refused, not rounded."""
    processor = AutoProcessor.from_pretrained(folder)
    ids = processor.tokenizer.encode_codes([np.zeros((4, 4), np.int64)])[0]
    for wrong in (ids + 0.7, ids / 1.0, torch.from_numpy(ids) + 0.5):
        with pytest.raises(ValueError, match="ids must hold integers, got dtype float"):
            processor.decode_codes(wrong)
        with pytest.raises(ValueError, match="generated_outputs must hold integers"):
            processor.post_process_multimodal_output([wrong], generation_mode="image")
    with pytest.raises(ValueError, match="codes must hold integers, got dtype float64"):
        processor.reconstruct(np.full((4, 4), 1.9))
    for kind in (np.int16, np.uint8, np.int64):
        assert processor.reconstruct(np.ones((4, 4), kind)).size == (16, 16)


def test_bytes_are_no_pixel_values(folder):
    processor = AutoProcessor.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"pixel_values must be floating point, got torch\.uint8"):
        processor.vq_model.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def test_a_tokenizer_of_another_class_is_named(folder):
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"tokenizer_class must be BeingVLTokenizer, got "):
        AutoProcessor.from_pretrained(folder)
