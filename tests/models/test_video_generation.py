"""generate(generation_mode="video"): every frame decodes, and none repeats where there is nothing to repeat."""

import numpy as np
import pytest
import torch
from model_fixtures import BOI, EOI, IMAGE, PAD, TEXT_SIZE

from being_vl import BeingVLConfig, BeingVLForCausalLM, ImageBPE, mark_repeats
from being_vl.bpe import decode_frames
from being_vl.bpe.grid_tracking import OpenImageTracker
from being_vl.bpe.placement import GridState
from being_vl.models.grid_mask import GridMask
from being_vl.models.legal_logits import ImageGridLogitsProcessor

CODES, GRID, FRAMES = 6, (3, 4), 4
BOV, EOV, VIDEO = TEXT_SIZE + 4, TEXT_SIZE + 5, TEXT_SIZE + 6


def video_bpe() -> ImageBPE:
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 3, (40, 5, *GRID))
    for clip in clips:
        for t in range(1, 5):
            keep = rng.random(GRID) < 0.6
            clip[t][keep] = clip[t - 1][keep]
    marked = [frame for clip in clips for frame in mark_repeats(clip, CODES)]
    return ImageBPE.train(marked, 30, CODES + 1, repeat_code=CODES)


BPE = video_bpe()


def video_model(**options) -> BeingVLForCausalLM:
    torch.manual_seed(0)
    config = BeingVLConfig(
        text_vocab_size=TEXT_SIZE, num_special_tokens=7, codebook_size=CODES + 1, num_merges=BPE.num_merges,
        boi_token_id=BOI, eoi_token_id=EOI, image_token_id=IMAGE, bov_token_id=BOV, eov_token_id=EOV,
        video_token_id=VIDEO, image_grid_size=GRID, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, bos_token_id=1,
        eos_token_id=2, pad_token_id=PAD, **options,
    )  # fmt: skip
    model = BeingVLForCausalLM(config).eval()
    model.image_bpe = BPE
    return model


@pytest.fixture(scope="module")
def model() -> BeingVLForCausalLM:
    return video_model()


def frames_of(ids: torch.Tensor) -> tuple[list[np.ndarray], np.ndarray]:
    """Visual ids of the frames of the last video of a row, checked to be whole, and the codes that they are."""
    row = ids.tolist()
    start = len(row) - 1 - row[::-1].index(BOV)
    inside = row[start + 1 : row.index(EOV, start)]
    first = TEXT_SIZE + 7
    frames = []
    for token in inside:
        if token == BOI:
            frames.append([])
        elif token != EOI:
            frames[-1].append(token - first)
    assert inside.count(BOI) == inside.count(EOI) == len(frames)
    return [np.array(frame) for frame in frames], decode_frames(BPE, frames, *GRID)


SETTINGS = {
    "greedy": {},
    "no cache": {"use_cache": False},
    "sampling, hot": {"do_sample": True, "temperature": 8.0, "num_return_sequences": 4},
    "beams": {"num_beams": 3},
    "beams, sampled": {"num_beams": 3, "do_sample": True, "temperature": 3.0},
    "guidance": {"guidance_scale": 2.0},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_frame_decodes(model, settings) -> None:
    torch.manual_seed(1)
    prompt = torch.tensor([[1, 5, 6], [1, 7, 8]])
    out = model.generate(prompt, generation_mode="video", num_frames=FRAMES, **settings)
    for row in out:
        assert not (row[:3] >= TEXT_SIZE).any() and row[3] == BOV
        frames, codes = frames_of(row)
        assert codes.shape == (FRAMES, *GRID) and codes.max() < CODES
        assert not BPE.repeating_ids()[frames[0]].any()


def test_hot_samples_do_repeat_and_key_frames_do_not() -> None:
    model = video_model(key_frame_interval=2)
    torch.manual_seed(0)
    prompt = torch.full((20, 1), 1)
    out = model.generate(
        prompt, generation_mode="video", num_frames=5, do_sample=True, temperature=9.0
    )
    repeats = np.zeros(5, int)
    for row in out:
        frames, _ = frames_of(row)
        repeats += [int(BPE.repeating_ids()[frame].any()) for frame in frames]
    assert repeats[[0, 2, 4]].tolist() == [0, 0, 0] and (repeats[[1, 3]] > 5).all()


def test_a_prompt_that_ends_in_a_video_is_continued(model) -> None:
    prompt = torch.full((2, 1), 1)
    whole = model.generate(prompt, generation_mode="video", num_frames=3)
    for cut in range(2, whole.shape[1] - 2, 5):
        again = model.generate(whole[:1, :cut], generation_mode="video", num_frames=3)
        assert torch.equal(again[0], whole[0][: again.shape[1]])
    more = model.generate(
        whole[:1, : int((whole[0] == EOV).nonzero()[0])], generation_mode="video", num_frames=5
    )
    assert len(frames_of(more[0])[0]) == 5


@pytest.mark.parametrize("mode", ["image", "interleaved", "text"])
def test_other_modes_neither_repeat_nor_begin_a_video(model, mode) -> None:
    torch.manual_seed(0)
    prompt = torch.full((30, 1), 5)
    out = model.generate(
        prompt, generation_mode=mode, do_sample=True, temperature=9.0, max_new_tokens=40
    )
    assert not torch.isin(out, torch.tensor([BOV, EOV, VIDEO])).any()
    visual = out[out >= TEXT_SIZE + 7] - TEXT_SIZE - 7
    assert not BPE.repeating_ids()[visual.numpy()].any()
    assert (len(visual) > 0) == (mode != "text")


def test_mask_is_the_reference(model) -> None:
    """Sequences with videos, images and broken frames, rows reordered as beams are."""
    rng = np.random.default_rng(0)
    layout = model.config.layout
    marks = {"bov_token_id": BOV, "eov_token_id": EOV}
    for interval in (None, 2):
        reference, tracker = (
            OpenImageTracker(
                layout, BPE, GRID, BOI, EOI, **marks, key_frame_interval=interval
            )
            for _ in range(2)
        )  # fmt: skip
        mask = GridMask(tracker)
        ids = torch.tensor([[5, BOV], [5, BOI], [BOV, BOI], [1, 1]])
        seen = {"repeats": 0, "illegal": 0, "refused": 0}
        for _ in range(300):
            mask.advance(ids)
            legal = mask.legal_visual_ids().numpy()
            following = []
            for row, state in enumerate(reference.states(ids.numpy())):
                assert int(mask.num_frames[row]) == reference.num_frames(ids[row].numpy())
                assert bool(mask.is_illegal[row]) == isinstance(state, ValueError)
                assert bool(mask.is_open[row]) == isinstance(state, GridState)
                if isinstance(state, GridState) and not state.finished:
                    np.testing.assert_array_equal(legal[row], state.legal_mask())
                seen["illegal"] += isinstance(state, ValueError)
                wild = rng.random() < 0.05
                if isinstance(state, GridState) and not wild:
                    choice = np.flatnonzero(legal[row])
                    seen["repeats"] += bool(legal[row][CODES])
                    seen["refused"] += not legal[row][CODES]
                    full = state.finished
                    token = EOI if full else layout.first_code_id + int(rng.choice(choice))
                else:
                    weights = [0.5, 0.1, 0.05, 0.05, 0.1, 0.1, 0.1]
                    tokens = [BOI, BOV, EOV, 5, EOI, layout.first_code_id, layout.size - 1]
                    token = int(rng.choice(tokens, p=weights))
                following.append(token)
            ids = torch.cat([ids, torch.tensor(following)[:, None]], dim=1)
            ids = ids[torch.from_numpy(rng.integers(0, len(ids), len(ids)))]
        assert min(seen.values()) > 4


def test_random_scores_always_give_a_legal_video(model) -> None:
    rng = np.random.default_rng(0)
    tracker = OpenImageTracker(
        model.config.layout, BPE, GRID, BOI, EOI, bov_token_id=BOV, eov_token_id=EOV
    )
    processor = ImageGridLogitsProcessor(
        tracker, model.config, prompt_length=1, max_new_tokens=None, num_frames=3
    )
    ids = torch.full((200, 1), 1)
    for _ in range(3 * 14 + 2):
        scores = torch.from_numpy(rng.normal(scale=9.0, size=(200, model.config.vocab_size)))
        chosen = processor(ids, scores).argmax(-1)
        finished = (ids == EOV).any(dim=1)
        ids = torch.cat([ids, torch.where(finished, PAD, chosen)[:, None]], dim=1)
    for row in ids:
        assert len(frames_of(row)[0]) == 3


@pytest.mark.parametrize(
    "options, message",
    [
        ({"generation_mode": "video"}, "needs num_frames, got None"),
        ({"generation_mode": "image", "num_frames": 3}, "it alone, needs num_frames, got 3"),
        ({"generation_mode": "video", "num_frames": 0}, "num_frames must be at least 1, got 0"),
    ],
)
def test_what_is_refused(model, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(torch.tensor([[1]]), **options)


def test_a_model_without_videos_says_so() -> None:
    model = video_model()
    model.config.bov_token_id = None
    with pytest.raises(ValueError, match=r"config.bov_token_id must be set to generate videos"):
        model.generate(torch.tensor([[1]]), generation_mode="video", num_frames=2)
