"""The mask of an engine's rows is that of `generate`, step by step, and costs an engine little."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoint_fixtures import CODEBOOK_SIZE, image_bpe, tiny_checkpoint

from being_vl import ImageBPE
from being_vl.bpe.grid_tracking import OpenImageTracker
from being_vl.models.legal_logits import ImageGridLogitsProcessor, TextOnlyLogitsProcessor
from being_vl.serving.request_masks import BatchMask, ImageIds, RequestState, checked_mode
from being_vl.vocabulary import VocabularyLayout

BPE = image_bpe()
LAYOUT = VocabularyLayout(50, 7, BPE.codebook_size, BPE.num_merges)
BOI, EOI, END = 52, 53, 7
CONFIG = SimpleNamespace(
    layout=LAYOUT, boi_token_id=BOI, eoi_token_id=EOI, image_token_id=54,
    bov_token_id=51, eov_token_id=55, video_token_id=56,
)  # fmt: skip
IDS = ImageIds.from_config(CONFIG, BPE)
BUDGET = 40


def reference(mode: str, size: tuple[int, int], prompt: list[int], bpe=BPE):
    """The processor of `generate`."""
    if mode == "text":
        return TextOnlyLogitsProcessor(CONFIG)
    return ImageGridLogitsProcessor(
        OpenImageTracker(LAYOUT, bpe, size, BOI, EOI),
        CONFIG,
        prompt_length=len(prompt),
        max_new_tokens=None if mode == "image" else BUDGET,
    )


@pytest.mark.parametrize("repeat_code", [None, CODEBOOK_SIZE - 1])
@pytest.mark.parametrize("seed", range(6))
def test_mixed_batches_step_by_step(seed: int, repeat_code: int | None) -> None:
    """Requests of all modes come, go and change places; each step's logits are those of `generate`."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    bpe = ImageBPE(BPE.merges, BPE.codebook_size, repeat_code=repeat_code)
    ids = ImageIds.from_config(CONFIG, bpe)
    mask, live = BatchMask(ids, "cpu"), []
    for _ in range(60):
        while len(live) < 6:
            mode = ("text", "image", "interleaved")[rng.integers(3)]
            size = (int(rng.integers(1, 5)), int(rng.integers(1, 5)))
            first = LAYOUT.first_code_id
            prompts = [[3, 4], [3, BOI], [BOI, first + 1, EOI, 5], [2, BOI, first + 2]]
            prompt = prompts[rng.integers(4 if mode != "text" else 1)]
            row = RequestState(ids, mode, size, prompt, generated := [], BUDGET)
            live.append((row, generated, reference(mode, size, prompt, bpe), prompt))
        rng.shuffle(live)
        logits = torch.randn(len(live), LAYOUT.size)
        rows = {index: row for index, (row, *_) in enumerate(live)}
        masked = mask.apply(logits.clone(), rows)
        for index, (_, generated, theirs, prompt) in enumerate(live):
            expected = theirs(torch.tensor([prompt + generated]), logits[index : index + 1])[0]
            assert torch.equal(masked[index], expected)
            generated.append(int(expected.softmax(0).multinomial(1)))
        live = [entry for entry in live if rng.random() > 0.05 and len(entry[1]) < BUDGET]


def test_an_image_ends_its_answer() -> None:
    """Behind it, nothing but a token that ends answers."""
    ids = ImageIds.from_config(CONFIG, BPE, [END])
    row = RequestState(ids, "image", (1, 1), [3], [BOI, LAYOUT.first_code_id, EOI], 9)
    logits = BatchMask(ids, "cpu").apply(torch.randn(1, LAYOUT.size), {0: row})
    assert torch.isfinite(logits[0]).nonzero().flatten().tolist() == [END]


def test_the_grid_comes_before_other_processors() -> None:
    """Where all that is legal has been ruled out, it is allowed again."""
    row = RequestState(IDS, "image", (1, 1), [3, BOI], [], 9)
    logits = torch.randn(1, LAYOUT.size)
    logits[:, LAYOUT.first_code_id :] = -torch.inf
    logits = BatchMask(IDS, "cpu").apply(logits, {0: row})
    codes = range(LAYOUT.first_code_id, LAYOUT.first_merge_id)
    assert torch.isfinite(logits[0]).nonzero().flatten().tolist() == list(codes)


def test_rows_of_no_request_are_left_alone() -> None:
    logits = torch.randn(3, LAYOUT.size)
    row = RequestState(IDS, "interleaved", (2, 2), [3], [], 20)
    masked = BatchMask(IDS, "cpu").apply(logits.clone(), {1: row})
    assert torch.equal(masked[[0, 2]], logits[[0, 2]])
    assert masked[1, LAYOUT.first_code_id] == -torch.inf


@pytest.mark.parametrize(
    "options",
    [
        {"generation_mode": "video"},
        {"generation_mode": "image", "image_grid_size": 4},
        {"image_grid_size": [4, 0]},
        {"image_grid_size": [4, 4.0]},
        {"image_grid_size": [4, 4, 4]},
    ],
)
def test_options_that_mean_nothing(options: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        checked_mode(options)


def test_ids_of_a_checkpoint() -> None:
    model, processor = tiny_checkpoint()
    ids = ImageIds.from_config(model.config, processor.tokenizer.image_bpe)
    assert (ids.boi, ids.eoi) == (processor.boi_token_id, processor.eoi_token_id)
    assert ids.others == (processor.image_token_id,) and ids.layout.size == len(processor.tokenizer)
