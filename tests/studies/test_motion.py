"""The study of moving drawings: its clips are what its answers say, and a tiny run gives figures for every arm."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from being_vl.bpe import decode_frames
from being_vl.studies import motion


@pytest.mark.parametrize("seed", range(12))
def test_answers_are_what_the_clip_shows(seed: int) -> None:
    clip = motion.draw_clip(np.random.default_rng(seed))
    frames = clip.frames.astype(int)
    last = [frames[t] for t in (-3, -2, -1)]
    moved = [np.argwhere((b != a).any(-1)) for a, b in itertools.pairwise(last)]
    # What changes between late frames is the moving shape alone: its way is where the change goes.
    step = moved[1].mean(0) - moved[0].mean(0)
    row, col = step
    if abs(col) > abs(row):
        assert clip.answers[0] == ("right" if col > 0 else "left")
    else:
        assert clip.answers[0] == ("down" if row > 0 else "up")
    assert clip.answers[1] in ("faster", "slower") and clip.answers[2] in motion.SHAPES


def test_a_tiny_run(tmp_path, monkeypatch) -> None:
    output = tmp_path / "motion.json"
    words = "motion --seeds 1 --steps 2 --clips 80 --tests 10 --batch 4 --output"
    monkeypatch.setattr("sys.argv", [*words.split(), str(output)])
    assert motion.main() == 0
    rows = json.loads(output.read_text())["runs"]
    assert [row["arm"] for row in rows] == list(motion.ARMS)
    tokens = {row["arm"]: row["tokens"] for row in rows}
    assert tokens["raw"] == 3 + motion.FRAMES * (2 + 36)
    assert tokens["repeats"] < tokens["frames"] < tokens["raw"]
    assert all(len(row["at_steps"]) == len(row["at_time"]) == 3 for row in rows)
    assert len(motion.table(rows)) == 2 + len(motion.ARMS)


def test_every_arm_writes_the_clip_down_exactly() -> None:
    codes, _, _ = motion.clips_as_codes(64, 0, None)
    for name in motion.ARMS:
        arm = motion.Arm(name, codes, 0)
        ids = arm.encode(codes[3])
        frames = np.split(ids, np.flatnonzero(ids == len(motion.WORDS)))[1:]
        visual = [frame[frame >= arm.first_code] - arm.first_code for frame in frames]
        np.testing.assert_array_equal(decode_frames(arm.bpe, visual, 6, 6), codes[3])


def test_the_page_has_the_table_of_the_results() -> None:
    docs = Path(__file__).parents[2] / "docs"
    rows = json.loads((docs / "figures" / "motion.json").read_text())["runs"]
    assert len(rows) == 3 * len(motion.ARMS)
    assert "\n".join(motion.table(rows)) in (docs / "findings.md").read_text()
