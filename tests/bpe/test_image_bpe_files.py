"""image_bpe.json: what is saved is loaded, and every damaged file is refused by name."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from image_bpe_fixtures import mutated_files, random_rules

from being_vl.bpe.image_bpe import ImageBPE


def file_text(**changes):
    """A valid file of three rules over two codes, with fields changed; None drops a field."""
    fields = {
        "format": "being_vl.bpe.image_bpe",
        "version": 1,
        "codebook_size": 2,
        "merge_rule": "shape",
        "merges": [[0, 1, 0, 1], [2, 2, 1, 0], [3, 0, 0, 2]],
    }
    fields.update(changes)
    return json.dumps({key: value for key, value in fields.items() if value is not None})


def load(tmp_path, text):
    path = tmp_path / "image_bpe.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return ImageBPE.from_pretrained(tmp_path)


@pytest.mark.parametrize("merge_rule", ["shape", "pair"])
@pytest.mark.parametrize("num_merges", [0, 1, 300])
def test_round_trip_gives_the_same_bytes(tmp_path, merge_rule, num_merges):
    rules = np.array(random_rules(np.random.default_rng(0), 8, num_merges)).reshape(-1, 4)
    if merge_rule == "pair":
        rules = np.unique(rules * [1, 1, 0, 0], axis=0)
        rules = rules[np.argsort(rules[:, :2].max(axis=1), kind="stable")]
        rules = rules[rules[:, :2].max(axis=1, initial=0) < 8]
    bpe = ImageBPE(rules, 8, merge_rule=merge_rule)
    (path,) = bpe.save_pretrained(tmp_path / "new" / "folder")
    assert [file.name for file in Path(path).parent.iterdir()] == ["image_bpe.json"]
    again = ImageBPE.from_pretrained(path)
    assert again == bpe == ImageBPE.from_pretrained(tmp_path / "new" / "folder")
    again.save_pretrained(tmp_path)
    assert Path(path).read_bytes() == (tmp_path / "image_bpe.json").read_bytes()
    assert json.loads(Path(path).read_text())["merge_rule"] == merge_rule


def test_loads_a_file_that_is_spelled_otherwise(tmp_path):
    text = json.dumps(json.loads(file_text()), indent=3, sort_keys=True)
    assert load(tmp_path, text) == load(tmp_path, file_text())


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"image_bpe\.json"):
        ImageBPE.from_pretrained(tmp_path)


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    bpe = load(tmp_path, file_text())
    before = (tmp_path / "image_bpe.json").read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        bpe.save_pretrained(tmp_path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [before]


HUGE = [[0, 0, 0, 1]] + [[r, r, 0, 2**r] for r in range(1, 25)]
LONG = [[0, 0, 0, 1]] + [[r, 0, 0, r + 1] for r in range(1, 9000)]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": None}, "format is None, expected 'being_vl.bpe.image_bpe'"),
        ({"format": "tokenizer"}, "format is 'tokenizer'"),
        ({"version": 2}, "version is 2, this library reads version 1"),
        ({"version": True}, "version is True"),
        ({"version": 1.0}, "version is 1.0"),
        ({"codebook_size": None}, "field 'codebook_size' is missing"),
        ({"codebook_size": 0}, "codebook_size must lie in"),
        ({"codebook_size": 10**9}, "codebook_size must lie in"),
        ({"codebook_size": True}, "codebook_size must be an integer, got True"),
        ({"codebook_size": 2.0}, "codebook_size must be an integer, got 2.0"),
        ({"codebook_size": "2"}, "codebook_size must be an integer, got '2'"),
        ({"merge_rule": "l"}, "merge_rule is 'l', expected one of"),
        ({"merge_rule": ["shape"]}, "merge_rule is a list ['shape'], expected one of"),
        ({"merges": None}, "field 'merges' is missing"),
        ({"merges": {}}, "merges must be a list, got a dict"),
        ({"merges": "no"}, "merges must be a list, got 'no'"),
        ({"extra": 1}, "unknown field 'extra'"),
        ({"merges": [[0, 1, 0, 1], 7]}, "merges[1] must be a list of first, second"),
        (
            {"merges": [[0, 1, 0]]},
            "merges[0] must be a list of first, second, row_offset, col_offset; got 3",
        ),
        ({"merges": [[0, 1, 0, True]]}, "merges[0].col_offset must be an integer, got True"),
        ({"merges": [[0, 1, 0.0, 1]]}, "merges[0].row_offset must be an integer, got 0.0"),
        ({"merges": [[0, "1", 0, 1]]}, "merges[0].second must be an integer, got '1'"),
        ({"merges": [[None, 1, 0, 1]]}, "merges[0].first must be an integer, got None"),
        ({"merges": [[10**40, 1, 0, 1]]}, "merges[0].first is 1000"),
        (
            {"merges": [[0, 1, 0, 1], [9, 0, 0, 1]]},
            "merges[1].first is 9, but only 3 tokens exist at that rank",
        ),
        ({"merges": [[0, 2, 0, 1]]}, "merges[0].second is 2, but only 2 tokens exist at that rank"),
        ({"merges": [[0, -1, 0, 1]]}, "merges[0].second is -1, but an id is at least 0"),
        ({"merges": [[0, 1, -1, 1]]}, "merges[0].row_offset is -1, but must lie in [0, 16383]"),
        ({"merges": [[0, 1, 1, 99999]]}, "merges[0].col_offset is 99999, but must lie in"),
        (
            {"merges": [[0, 1, 0, -1]]},
            "merges[0].col_offset is -1 at row_offset 0, but must be positive",
        ),
        (
            {"merges": [[0, 1, 0, 0]]},
            "merges[0].col_offset is 0 at row_offset 0, but must be positive",
        ),
        ({"merges": [[0, 1, 0, 1], [0, 1, 0, 1]]}, "merges[1] repeats merges[0]"),
        ({"merges": [[0, 1, 1, 1]]}, "merges[0]: first and second share no edge"),
        ({"merges": [[0, 0, 0, 1], [2, 2, 0, 1]]}, "merges[1]: first and second overlap"),
        ({"merges": HUGE, "codebook_size": 1}, "merges[14].col_offset is 16384, but must lie"),
        ({"merges": LONG, "codebook_size": 1}, "merges[2894] makes a token of"),
        (
            {"merges": [[0, 1, 0, 1]], "merge_rule": "pair"},
            "merges[0].col_offset is 1, but is 0 where",
        ),
    ],
)
def test_names_the_field(tmp_path, changes, message):
    with pytest.raises(ValueError, match=re.escape(f"image_bpe.json: {message}")):
        load(tmp_path, file_text(**changes))


@pytest.mark.parametrize(
    "text, message",
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON: 'utf-8' codec"),
        (file_text()[:-20], "not valid JSON"),
        (b"[]", "must be an object, got a list"),
        (b"3", "must be an object, got 3"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (
            file_text().replace("[0, 1, 0, 1]", "[0, 1, 0, NaN]"),
            "not valid JSON: NaN is not a number",
        ),
        (
            file_text().replace("[0, 1, 0, 1]", "[0, 1, 0, Infinity]"),
            "not valid JSON: Infinity is not a number",
        ),
        (
            file_text().replace("[0, 1, 0, 1]", "[0, 1, 0, 1" + "0" * 9999 + "]"),
            "not valid JSON: Exceeds the limit",
        ),
        (
            file_text().replace("{", '{"version": 1, ', 1),
            "not valid JSON: field 'version' appears twice",
        ),
        (b" " * (1 << 22) + b"{}", "larger than 4194304 bytes"),
    ],
    ids=range(12),
)
def test_refuses_what_is_not_our_json(tmp_path, text, message):
    with pytest.raises(ValueError, match=re.escape(f"image_bpe.json: {message}")):
        load(tmp_path, text)


def test_the_largest_token_allowed(tmp_path):
    """16,384 cells from 14 doublings, in two dimensions; one more doubling is refused."""
    rules, height, width = [], 1, 1
    for r in range(14):
        rules.append([r, r, 0, width] if r % 2 else [r, r, height, 0])
        height, width = (height, 2 * width) if r % 2 else (2 * height, width)
    bpe = load(tmp_path, file_text(codebook_size=1, merges=rules))
    assert bpe.token_sizes()[-1] == 16384 == height * width
    assert bpe.encode(np.zeros((128, 128), int)).tolist() == [14]
    rules.append([14, 14, height, 0])
    with pytest.raises(ValueError, match=re.escape("merges[14] makes a token of 32768 cells")):
        load(tmp_path, file_text(codebook_size=1, merges=rules))


def test_mutated_files(tmp_path):
    """The soak runs 10,000 of them: python tests/bpe/soak_image_bpe.py --mutations 10000."""
    path = tmp_path / "image_bpe.json"
    loaded = 0
    for text in mutated_files(np.random.default_rng(0), 1500):
        path.write_bytes(text)
        begin = time.process_time()
        try:
            ImageBPE.from_pretrained(path)
            loaded += 1
        except ValueError as error:
            assert str(error).startswith(f"{path}: "), error
        assert time.process_time() - begin < 1
    assert 0 < loaded < 750


def test_sixteen_thousand_merges_load_in_tens_of_milliseconds(tmp_path):
    bpe = ImageBPE(random_rules(np.random.default_rng(0), 8192, 16384), 8192)
    bpe.save_pretrained(tmp_path)
    ImageBPE.from_pretrained(tmp_path)
    times = []
    for _ in range(3):
        begin = time.process_time()
        ImageBPE.from_pretrained(tmp_path)
        times.append(time.process_time() - begin)
    assert min(times) < 0.25  # 0.05 on an idle core


def test_a_hostile_file_stays_within_memory(tmp_path):
    """Deep chains, the largest tables allowed and four megabytes of brackets, in a process of their own."""
    if not Path("/proc/self/status").exists():
        pytest.skip("reads the peak memory of a process from /proc")
    script = (
        "import sys\n"
        "from being_vl.bpe.image_bpe import ImageBPE\n"
        "for path in sys.argv[1:]:\n"
        "    try: ImageBPE.from_pretrained(path)\n"
        "    except ValueError: pass\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    tall = [[0, 0, 0, 1]] + [[r, 0, 0, r + 1] for r in range(1, 2800)]
    texts = [
        file_text(codebook_size=1, merges=LONG),
        file_text(codebook_size=1, merges=tall),
        file_text(merges=[[]] * 1_000_000),
        file_text(merges=[[0, 0, 0, 1]] * 260_000),
        "[" * 4_000_000,
        file_text(codebook_size=1 << 20),
    ]
    paths = []
    for index, text in enumerate(texts):
        paths.append(tmp_path / f"{index}.json")
        paths[-1].write_text(text)
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, paths)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout.split()[1]) < 256 * 1024, "kilobytes"
    assert time.monotonic() - begin < 60
