"""`Quantize` and `TokenizeConversations`: the columns of the commands, in any engine."""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from data_fixtures import make_checkpoint, make_codes, make_rows, write_rows
from encode_fixtures import make_images, make_processor, make_quantizer
from PIL import Image

from being_vl.cli import main as being_vl_command
from being_vl.codes.shards import CodeShards
from being_vl.data import Quantize, TokenizeConversations, TokenizeSettings
from being_vl.quantizers.image_loading import UnreadableImageError

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"


@pytest.fixture
def quantizer(tmp_path):
    make_quantizer().save_pretrained(tmp_path / "vq")
    make_processor(crop=False).save_pretrained(tmp_path / "vq")
    return str(tmp_path / "vq")


def test_codes_are_those_of_the_command_whatever_stands_for_the_image(quantizer, tmp_path):
    ids = make_images(tmp_path / "images", 7)
    paths = [tmp_path / "images" / name for name in ids]
    command = ["encode", "--quantizer", quantizer, "--images", str(tmp_path / "images")]
    command += ["--output", str(tmp_path / "codes"), "--device", "cpu", "--workers", "0"]
    assert being_vl_command(command) == 0
    expected = list(CodeShards(tmp_path / "codes"))
    forms = {
        "paths": paths,
        "bytes": [path.read_bytes() for path in paths],
        "rows": [{"bytes": path.read_bytes(), "path": None} for path in paths],
        "pictures": [Image.open(path) for path in paths],
        "arrays": [np.asarray(Image.open(path)) for path in paths],
    }
    for form, images in forms.items():
        found = Quantize(quantizer, batch_size=3)({"image": images, "name": ids})
        assert list(found) == ["name", "height", "width", "codes"] and found["name"] == ids
        assert {codes.dtype for codes in found["codes"]} == {np.dtype(np.int16)}
        for i, grid in enumerate(expected):
            own = found["codes"][i].reshape(found["height"][i], found["width"][i])
            np.testing.assert_array_equal(own, grid, err_msg=f"{form}, {ids[i]}")


def test_an_unreadable_image_is_named_or_its_row_skipped(quantizer, tmp_path):
    good = tmp_path / "images" / make_images(tmp_path / "images", 1)[0]
    batch = {"image": [good, b"no picture", None, good], "n": np.arange(4)}
    with pytest.raises(UnreadableImageError, match=r"column 'image', row 1 of the batch: .*format"):
        Quantize(quantizer)(batch)
    found = Quantize(quantizer, on_error="skip")(batch)
    assert found["n"] == [0, 3] and len(found["codes"]) == 2
    none = Quantize(quantizer, on_error="skip")({"image": [None], "n": [1]})
    assert none["n"] == none["codes"] == [] and len(none["height"]) == 0
    with pytest.raises(ValueError, match=r"no column 'picture'; there are \['image', 'n'\]"):
        Quantize(quantizer, "picture")(batch)


def test_what_is_loaded_does_not_travel(quantizer, tmp_path):
    image = tmp_path / "images" / make_images(tmp_path / "images", 1)[0]
    step = Quantize(quantizer)
    before = pickle.dumps(step), datasets.fingerprint.Hasher.hash(step)
    codes = step({"image": [image]})["codes"]
    assert (pickle.dumps(step), datasets.fingerprint.Hasher.hash(step)) == before
    assert len(before[0]) < 1000
    again = pickle.loads(before[0])({"image": [image]})["codes"]
    np.testing.assert_array_equal(again[0], codes[0])


@pytest.mark.parametrize("own", [False, True], ids=["folder of codes", "codes in the samples"])
def test_ids_are_those_of_the_command(own, tmp_path):
    checkpoint, codes = make_checkpoint(tmp_path / "checkpoint"), tmp_path / "codes"
    grids = make_codes(codes)
    samples = make_rows(sorted(grids))
    if own:  # one image each
        samples = samples[::3]
    data = write_rows(tmp_path / "samples.json", samples)
    command = ["tokenize", "--checkpoint", str(checkpoint), "--data", str(data), "--workers", "0"]
    command += ["--codes", str(codes), "--output", str(tmp_path / "out")]
    assert being_vl_command(command) == 0
    expected = datasets.load_dataset(
        "arrow", data_files=f"{tmp_path}/out/*.arrow", split="train", cache_dir=str(tmp_path)
    ).to_list()
    settings = TokenizeSettings(source="samples")
    step = TokenizeConversations(str(checkpoint), [] if own else [str(codes)], settings=settings)
    names = dict.fromkeys(name for sample in samples for name in sample)
    batch = {name: [sample.get(name) for sample in samples] for name in names}
    if own:
        taken = [grids[sample["image"]] for sample in samples]
        batch["height"], batch["width"] = np.array([grid.shape for grid in taken]).T
        batch["codes"] = [grid.reshape(-1) for grid in taken]
    found = pickle.loads(pickle.dumps(step))(batch)
    assert [
        dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)
    ] == expected


def test_codes_that_no_quantizer_gives_name_their_sample(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    turns = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "yes"}]
    batch = {
        "id": ["good", "bad"], "image": ["a", "b"], "conversations": [turns, turns],
        "height": [1, 1], "width": [2, 2], "codes": [[0, 1], [0, 9999]],
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"^row 'bad': image 'b': .*is 9999, but codes lie in \[0"):
        TokenizeConversations(str(checkpoint))(batch)
    skipping = TokenizeSettings(source="columns", on_bad_row="skip")
    assert TokenizeConversations(str(checkpoint), settings=skipping)(batch)["id"] == ["good"]


def test_codes_of_another_quantizer_are_refused(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    make_codes(tmp_path / "codes", quantizer="another")
    batch = {"id": ["a"], "messages": [[]]}
    step = TokenizeConversations(str(checkpoint), [str(tmp_path / "codes")])
    with pytest.raises(ValueError, match="made with another quantizer"):
        step(batch)
    with pytest.raises(ValueError, match=r"samples need a column 'id'; there are \['messages'\]"):
        step({"messages": [[]]})


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("ray", "datatrove"))),
    reason="needs ray and datatrove; .ci/cluster installs them",
)
def test_the_page_of_engines_runs(tmp_path):
    """docs/cluster.md ends in the assertion that the four engines give equal columns."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    lines = "\n".join(blocks).splitlines()
    # A script that spawns processes guards what they are not to run again.
    start = next(i for i, line in enumerate(lines) if line.startswith("import datasets"))
    functions = [
        i for i, line in enumerate(lines) if line.startswith(("def collate", "    return tokenize"))
    ]
    kept = [*lines[:start], *(lines[i] for i in functions)]
    rest = [f"    {line}" for i, line in enumerate(lines) if i >= start and i not in functions]
    (tmp_path / "page.py").write_text("\n".join([*kept, "if __name__ == '__main__':", *rest]))
    run = subprocess.run(
        [sys.executable, "page.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,  # 45 CPU seconds, most of them imports of six processes
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "HF_HOME": str(tmp_path)},
    )
    assert run.returncode == 0, run.stderr[-3000:]
