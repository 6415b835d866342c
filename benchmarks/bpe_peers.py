"""Our image BPE beside trainers and encoders of one-dimensional BPE, on the same grids, in one run.

    python benchmarks/bpe_peers.py --grids 4000 --codes 8192 --repeats 5

To the peers a grid is its raster sequence, one word of a private alphabet (a CJK character for each code).
Every measurement runs in a process of its own on one core, ours after a small training that loads the machine
code; ours is measured with one and with two threads. Times are CPU and wall seconds, medians over the
repeats; memory is what the peak adds to the process before the measurement; tokens are those of a held-out
grid. Peers that are not installed are left out:

    pip install sentencepiece gigabpe tokenizers fastokens gigatoken
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FIRST_LETTER = 0x4E00  # the CJK block: 20,992 letters that every pre-tokenizer keeps together
TRAINERS = ("ours", "ours, 2 threads", "gigabpe", "sentencepiece", "tokenizers")
ENCODERS = ("ours", "fastokens", "gigatoken", "sentencepiece", "tokenizers")


def as_text(grids: np.ndarray) -> list[str]:
    """Each grid's raster sequence as one word."""
    letters = [chr(FIRST_LETTER + code) for code in range(int(grids.max()) + 1)]
    return ["".join([letters[code] for code in grid]) for grid in grids.reshape(len(grids), -1)]


def peak_bytes() -> int:
    """The most memory that this process has had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def measured(work: Callable[[], Any]) -> dict[str, float]:
    """CPU seconds, wall seconds and bytes added to the peak."""
    peak, cpu, wall = peak_bytes(), time.process_time(), time.perf_counter()
    work()
    return {
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "bytes": peak_bytes() - peak,
    }


def train_ours(folder: Path, args: argparse.Namespace, threads: int) -> dict[str, Any]:
    from being_vl import ImageBPE

    grids = np.load(folder / "train.npy", mmap_mode="r")
    options = {"codebook_size": args.codes, "num_threads": threads}
    ImageBPE.train(np.asarray(grids[:64]), 64, **options)
    learned: list[ImageBPE] = []
    result = measured(lambda: learned.append(ImageBPE.train(grids, args.merges, **options)))
    learned[0].save_pretrained(folder)
    tokens = [len(ids) for ids in learned[0].encode_batch(np.load(folder / "held_out.npy"))]
    return {**result, "merges": learned[0].num_merges, "tokens": statistics.mean(tokens)}


def train_gigabpe(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    import gigabpe
    from tokenizers import Tokenizer

    target = folder / "gigabpe.json"
    result = measured(
        lambda: gigabpe.train_tokenizer(
            [str(folder / "train.txt")], args.codes + args.merges, str(target), min_frequency=2,
            special_tokens=[], pretokenizer="whitespace", threads=1,
        )
    )  # fmt: skip
    return {**result, **_of_tokenizer(Tokenizer.from_file(str(target)), folder)}


def train_tokenizers(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=args.codes + args.merges,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=[chr(FIRST_LETTER + code) for code in range(args.codes)],
    )
    lines = (folder / "train.txt").read_text("utf-8").split()
    result = measured(lambda: tokenizer.train_from_iterator(lines, trainer))
    tokenizer.save(str(folder / "tokenizers.json"))
    return {**result, **_of_tokenizer(tokenizer, folder)}


def _of_tokenizer(tokenizer: Any, folder: Path) -> dict[str, Any]:
    lines = (folder / "held_out.txt").read_text("utf-8").split()
    tokens = [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(lines)]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return {"merges": len(merges), "tokens": statistics.mean(tokens)}


def train_sentencepiece(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    import sentencepiece

    options = {
        "input": str(folder / "train.txt"), "model_prefix": str(folder / "pieces"), "model_type": "bpe",
        "vocab_size": args.codes + args.merges + 3, "character_coverage": 1.0, "num_threads": 1,
        "normalization_rule_name": "identity", "add_dummy_prefix": False, "hard_vocab_limit": False,
        "max_sentence_length": 1 << 20, "max_sentencepiece_length": 512, "minloglevel": 2,
    }  # fmt: skip
    result = measured(lambda: sentencepiece.SentencePieceTrainer.train(**options))
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "pieces.model"))
    lines = (folder / "held_out.txt").read_text("utf-8").split()
    tokens = [len(ids) for ids in model.encode(lines)]
    merges = model.get_piece_size() - 3 - args.codes
    return {**result, "merges": merges, "tokens": statistics.mean(tokens)}


def encode_with(name: str, folder: Path) -> dict[str, Any]:
    """Encode the held-out grids with what was learned, on one core; all but the first 8, which warm it up.

    Grids are met once: gigatoken keeps the tokens of every word that it has seen.
    """
    grids: Any = np.load(folder / "held_out.npy")
    lines: Any = (folder / "held_out.txt").read_text("utf-8").split()
    if name == "ours":
        from being_vl import ImageBPE

        bpe = ImageBPE.from_pretrained(folder)
        encode = lambda part: bpe.encode_batch(grids[part], num_threads=1)  # noqa: E731
    elif name == "sentencepiece":
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "pieces.model"))
        encode = lambda part: model.encode(lines[part], num_threads=1)  # noqa: E731
    elif name == "tokenizers":
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizers.json"))
        encode = lambda part: tokenizer.encode_batch_fast(lines[part])  # noqa: E731
    elif name == "fastokens":
        import fastokens

        fast = fastokens.Tokenizer.from_file(str(folder / "tokenizers.json"))
        encode = lambda part: fast.encode_batch(lines[part])  # noqa: E731
    else:
        import gigatoken
        from tokenizers import Tokenizer

        # it wants a token for each byte, which no grid needs
        content = json.loads((folder / "tokenizers.json").read_text("utf-8"))
        vocab = content["model"]["vocab"]
        size = len(vocab)
        vocab.update({f"<0x{byte:02X}>": size + byte for byte in range(256)})
        content["model"]["byte_fallback"] = True
        giga = gigatoken.Tokenizer(Tokenizer.from_str(json.dumps(content)))
        encode = lambda part: giga.encode_batch_list(lines[part])  # noqa: E731
    encode(slice(0, 8))
    result = measured(lambda: encode(slice(8, None)))
    return {"microseconds": 1e6 * result["cpu"] / (len(grids) - 8)}


def child(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One measurement, in this process."""
    if args.encode:
        return encode_with(name, folder)
    if name.startswith("ours"):
        return train_ours(folder, args, 2 if name.endswith("threads") else 1)
    return {
        "gigabpe": train_gigabpe,
        "sentencepiece": train_sentencepiece,
        "tokenizers": train_tokenizers,
    }[name](folder, args)


def run_child(name: str, folder: Path, args: argparse.Namespace, encode: bool) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--child", name, "--folder", str(folder)]
    command += ["--codes", str(args.codes), "--merges", str(args.merges), *["--encode"] * encode]
    environment = {**os.environ, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"{name}: {run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


def compare(args: argparse.Namespace, folder: Path) -> None:
    """Print both tables, in Markdown."""
    if args.train_file:
        training, held_out = (np.load(path) for path in (args.train_file, args.held_out_file))
        training = training[: args.grids]
    else:
        import bpe_data

        training, held_out = bpe_data.photographs(args.grids, args.codes)
    for name, grids in (("train", training), ("held_out", held_out)):
        np.save(folder / f"{name}.npy", grids)
        (folder / f"{name}.txt").write_text("\n".join(as_text(grids)) + "\n", "utf-8")
    for encode, names in ((False, TRAINERS), (True, ENCODERS)):
        names = tuple(
            name for name in names
            if name.startswith("ours") or (_is_installed(name) and name in args.peers)
        )  # fmt: skip
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(args.repeats):
            for name in names:
                found[name].append(run_child(name, folder, args, encode))
        fields = list(found["ours"][0])
        print(f"\n| {len(training)} grids, {args.codes} codes | {' | '.join(fields)} |")
        print("|---" * (len(fields) + 1) + "|")
        for name in names:
            values = [statistics.median(one[field] for one in found[name]) for field in fields]
            shown = [f"{value:.4g}" if value < 1e5 else f"{value / 1e6:.0f} M" for value in values]
            print(f"| {_title(name)} | {' | '.join(shown)} |", flush=True)


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _title(name: str) -> str:
    return name if name.startswith("ours") else f"{name} {importlib.metadata.version(name)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--grids", type=int, default=4000)
    parser.add_argument("--codes", type=int, default=8192)
    parser.add_argument("--merges", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    peers = sorted({*TRAINERS, *ENCODERS} - {"ours", "ours, 2 threads"})
    parser.add_argument("--peers", nargs="*", choices=peers, default=peers)
    parser.add_argument("--train-file", type=Path, help=".npy of grids; photographs by default")
    parser.add_argument("--held-out-file", type=Path)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--encode", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child, args.folder, args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(args, Path(folder))


if __name__ == "__main__":
    main()
