"""grids → losses of small decoders: Figure 2 of "From Pixels to Tokens", in nats a cell.

Source: section 3.2 and Table B.1, whose decoders are `--sizes [grid]` and `--batches [8,16,32]`. The size "large" is one
of them; "small", with one layer, is below them. Differs from the paper in four things. Losses are a cell, not a token, so
that raw cells and BPE tokens compare. Definition 1 and independent rows are told apart, whose entropies differ. The
decoder is a Llama, with rotary positions. And tokens come with plain positions, or each knows the row and column of its
cell (`image_positions="grid"`), which its place in the sequence no longer tells once tokens have shapes.

Each run is one file in `--output`/figure2-runs, so a stopped command goes on where it was, and two commands
may share the work.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from experiment_tools import SOURCES, make_parser, seeds, write_results
from filelock import FileLock, Timeout
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from being_vl import BeingVLConfig, BeingVLForCausalLM, ImageBPE
from being_vl.files import write_atomic

CODEBOOK_SIZE = 2
BOI, FIRST_CODE = 0, 1  # the text vocabulary is one token
IGNORE_INDEX = -100
WARMUP = 50
TOKENS = ("raw", "bpe", "row-bpe")
SIZES = {"small": (10, 1, 1), "large": (40, 4, 4)}  # dimensions, layers, heads
# Table B.1's layers, dimensions and heads, as far as transformers has them: heads must divide the dimensions, so 16 never do.
GRID = [
    (width, layers, heads)
    for layers, width, heads in itertools.product((2, 4, 6, 8), (10, 20, 30, 40), (1, 2, 4, 8, 16))
    if width % heads == 0
]
BATCH = 16  # of runs whose name says no other


@dataclass(frozen=True)
class Setting:
    """One run: a source, what the decoder reads, its size, and the seed of its data and weights."""

    source: str
    tokens: str
    positions: str
    size: str
    learning_rate: float
    seed: int
    steps: int = 1200
    batch_size: int = BATCH
    side: int = 16
    dictionary: int = 10
    test_grids: int = 512

    @property
    def name(self) -> str:
        batch = [] if self.batch_size == BATCH else [f"batch{self.batch_size}"]
        kind = [self.source, self.tokens, self.positions, self.size, *batch]
        return "_".join([*kind, f"{self.learning_rate:g}", str(self.seed)])


def decoder(size: str) -> tuple[int, int, int]:
    """Dimensions, layers and heads of a name of `SIZES`, or of three numbers such as 10x2x1.

    Raises:
        ValueError: it is neither, or a number is not positive.
    """
    if size in SIZES:
        return SIZES[size]
    numbers = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", size)
    if numbers is None:
        raise ValueError(
            f"--sizes: grid, {', '.join(SIZES)} or DIMENSIONSxLAYERSxHEADS, not {size!r}"
        )
    width, layers, heads = map(int, numbers.groups())
    return width, layers, heads


def decoder_names(sizes: Sequence[str], quick: bool = False) -> list[str]:
    """The sizes that are asked for, each once, "grid" being all of Table B.1's; its first and last if `quick`."""
    grid = ["x".join(map(str, each)) for each in (GRID[:: len(GRID) - 1] if quick else GRID)]
    names = [name for size in sizes for name in (grid if size == "grid" else [size])]
    for name in names:
        decoder(name)
    return list(dict.fromkeys(names))


class Reader:
    """Grids → batches of ids and labels, and of the row and column of each token where they are wanted."""

    def __init__(self, bpe: ImageBPE, setting: Setting):
        self.bpe = bpe
        self.side = setting.side
        self.has_positions = setting.positions == "cell"
        shapes = (bpe.cells(visual_id) for visual_id in range(bpe.vocab_size))
        self.offsets = [[row * self.side + col for row, col, _ in shape] for shape in shapes]

    def __call__(self, grids: np.ndarray) -> dict[str, torch.Tensor]:
        many = self.bpe.encode_batch(grids, num_threads=1)
        shape = (len(many), 1 + max(map(len, many)))
        ids, labels = np.full(shape, BOI), np.full(shape, IGNORE_INDEX)
        positions = np.full((*shape, 2), -1)
        for row, tokens in enumerate(many):
            place = slice(1, 1 + len(tokens))
            ids[row, place] = labels[row, place] = tokens + FIRST_CODE
            if self.has_positions:
                positions[row, place] = self.anchors(tokens.tolist())
        batch = {"input_ids": ids, "labels": labels}
        if self.has_positions:
            batch["image_token_positions"] = positions
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def anchors(self, tokens: Sequence[int]) -> list[tuple[int, int]]:
        """Row and column of each token: the first cell that is not covered, cells being bits.

        `image_grid_positions.image_token_positions` gives the same, for any ids and much more slowly.
        """
        covered, found = 0, []
        for visual_id in tokens:
            anchor = (~covered & (covered + 1)).bit_length() - 1
            found.append(divmod(anchor, self.side))
            for offset in self.offsets[visual_id]:
                covered |= 1 << (anchor + offset)
        return found


def make_model(setting: Setting, num_merges: int) -> BeingVLForCausalLM:
    hidden_size, layers, heads = decoder(setting.size)
    config = BeingVLConfig(
        text_vocab_size=1,
        num_special_tokens=0,
        codebook_size=CODEBOOK_SIZE,
        num_merges=num_merges,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        # Rotary positions turn pairs of dimensions; two heads of ten dimensions have five.
        head_dim=2 * math.ceil(hidden_size / heads / 2),
        max_position_embeddings=setting.side**2 + 1,
        image_positions="grid" if setting.positions == "cell" else None,
        max_grid_size=setting.side,
        boi_token_id=BOI,
        bos_token_id=BOI,
        eos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
        use_cache=False,
    )
    return BeingVLForCausalLM(config)


def train_bpe(setting: Setting, rng: np.random.Generator) -> ImageBPE:
    """A dictionary of so many tokens, codes included; of the codes alone for raw cells.

    "bpe" is the 2D vocabulary. "row-bpe" learns from rows alone, so that its tokens lie along them.
    """
    if setting.tokens == "raw":
        return ImageBPE([], CODEBOOK_SIZE)
    grids = SOURCES[setting.source].sample(2000, setting.side, setting.side, rng)
    if setting.tokens == "row-bpe":
        grids = grids.reshape(-1, 1, setting.side)
    num_merges = setting.dictionary - CODEBOOK_SIZE
    return ImageBPE.train(grids, num_merges, CODEBOOK_SIZE, num_threads=1)


def train(model: BeingVLForCausalLM, grids: np.ndarray, reader: Reader, setting: Setting) -> None:
    """One pass over the grids: AdamW, a short warm-up, then a cosine to zero."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=setting.learning_rate, betas=(0.9, 0.95), weight_decay=1e-3
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1, (step + 1) / WARMUP) * (1 + np.cos(np.pi * step / setting.steps)) / 2,
    )
    for batch in np.split(grids, setting.steps):
        model(**reader(batch)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


@torch.inference_mode()
def losses(model: BeingVLForCausalLM, grids: np.ndarray, reader: Reader) -> np.ndarray:
    """−ln of the probability of each grid's tokens, in nats a cell, float64 (n,).

    The ids, height and width give the grid back, and no sequence of ids begins another: so this is a code
    length of the grid, and needs no end token.
    """
    found = []
    for start in range(0, len(grids), 64):
        batch = reader(grids[start : start + 64])
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch).logits[:, :-1]
        each = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        found.append(each.double().sum(dim=1).numpy())
    return np.concatenate(found) / grids[0].size


def run(setting: Setting) -> dict[str, Any]:
    """Train one decoder and test it; JSON-ready."""
    started = time.process_time()
    torch.manual_seed(setting.seed)
    rng = np.random.default_rng(setting.seed)
    source, side = SOURCES[setting.source], setting.side
    test = source.sample(setting.test_grids, side, side, rng)
    grids = source.sample(setting.steps * setting.batch_size, side, side, rng)
    bpe = train_bpe(setting, rng)
    model, reader = make_model(setting, bpe.num_merges), Reader(bpe, setting)
    train(model, grids, reader, setting)
    found, exact = losses(model, test, reader), -source.log_probability(test) / test[0].size
    return {
        **asdict(setting),
        "loss": float(found.mean()),
        "excess": float((found - exact).mean()),
        "optimum": source.grid_entropy(side, side) / side**2,
        "unigram": source.stationary_entropy(),
        "entropy_rate": source.entropy_rate(),
        "tokens_per_grid": float(np.mean([len(ids) for ids in bpe.encode_batch(test, 1)])),
        "parameters": sum(p.numel() for p in model.parameters()),
        "cpu_seconds": time.process_time() - started,
    }


def figure_parser() -> ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--sources", type=list[str], default=list(SOURCES))
    parser.add_argument("--tokens", type=list[str], default=list(TOKENS))
    parser.add_argument("--positions", type=list[str], default=["plain", "cell"])
    parser.add_argument(
        "--sizes",
        type=list[str],
        default=list(SIZES),
        help="small, large, DIMENSIONSxLAYERSxHEADS, grid",
    )
    parser.add_argument("--batches", type=list[PositiveInt], default=[BATCH], help="grids a step")
    parser.add_argument("--learning_rates", type=list[float], default=[2e-3])
    parser.add_argument("--minutes", type=float, help="start no run after so many")
    return parser


def all_settings(args: Namespace) -> list[Setting]:
    """The runs that are asked for, one seed of all before the next."""
    quick = {"steps": 4, "batch_size": 4, "side": 6, "test_grids": 8} if args.quick else {}
    return [
        Setting(
            source, tokens, positions, size, learning_rate, seed, **{"batch_size": batch, **quick}
        )
        for seed, size, batch, learning_rate, source, tokens, positions in itertools.product(
            seeds(args),
            decoder_names(args.sizes, args.quick),
            args.batches[:1] if args.quick else args.batches,
            args.learning_rates,
            args.sources,
            args.tokens,
            args.positions,
        )
    ]


def do_runs(settings: Sequence[Setting], folder: Path, minutes: float | None) -> None:
    """What has no file yet and no other command is at."""
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    for setting in settings:
        path = folder / f"{setting.name}.json"
        if minutes is not None and time.monotonic() - started > 60 * minutes:
            return
        try:
            with FileLock(folder / f".{setting.name}.lock", timeout=0):
                if path.exists():
                    continue
                result = run(setting)
                write_atomic(path, json.dumps(result) + "\n")
        except Timeout:
            continue
        print(f"{setting.name}: {result['loss']:.4f}, optimum {result['optimum']:.4f}", flush=True)


def collect(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """A panel a source: mean and spread by what is read and decoder; between optimum and unigram.

    Colors are decoders, or numbers of layers where there are more decoders than colors. Drawn is the optimum
    and the excess over it on the same grids, free of the chance of the test grids.
    """
    from matplotlib.figure import Figure

    sources = [name for name in SOURCES if any(row["source"] == name for row in results)]
    figure = Figure(figsize=(3.8 * len(sources), 3.8), layout="constrained")
    panels = figure.subplots(1, len(sources), sharey=True, squeeze=False)[0]
    kinds = list(itertools.product(TOKENS, ("plain", "cell")))
    names = ("size", "batch_size", "learning_rate")
    decoders = sorted({tuple(row[name] for name in names) for row in results}, reverse=True)
    legend: dict[str, str] = {}
    labels = []
    for number, (size, batch, learning_rate) in enumerate(decoders):
        width, layers, heads = decoder(size)
        label = f"{width} dimensions, {layers} layers, {heads} heads, batch {batch}, step size {learning_rate:g}"
        if len(decoders) > 10:
            label, number = f"{layers} layers", layers
        legend[label] = f"C{number % 10}"
        labels.append(label)
    for panel, source in zip(panels, sources, strict=True):
        rows = [row for row in results if row["source"] == source]
        for number, (own, label) in enumerate(zip(decoders, labels, strict=True)):
            shift = min(0.2, 0.8 / len(decoders)) * (number - (len(decoders) - 1) / 2)
            for place, kind in enumerate(kinds):
                found = [
                    row["loss"] for row in rows
                    if tuple(row[name] for name in names) == own
                    and (row["tokens"], row["positions"]) == kind
                ]  # fmt: skip
                if found:
                    spread = np.std(found, ddof=1) if len(found) > 1 else 0.0
                    panel.errorbar(
                        place + shift,
                        np.mean(found),
                        spread,
                        fmt="o",
                        capsize=3,
                        color=legend[label],
                    )
        panel.axhline(rows[0]["unigram"], color="grey", linestyle=":", label="unigram, H(π)")
        panel.axhline(
            rows[0]["optimum"], color="black", linestyle="--", label="optimum on these grids"
        )
        panel.set_xticks(
            range(len(kinds)), [f"{tokens}\n{positions}" for tokens, positions in kinds]
        )
        panel.set_title(source)
    panels[0].set_ylabel("nats a cell")
    for label, color in legend.items():
        panels[0].plot([], [], "o", color=color, label=label)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=100)


def main(args: Namespace) -> int:
    torch.set_num_threads(1)
    output = Path(args.output)
    runs = output / "figure2-runs"
    do_runs(all_settings(args), runs, args.minutes)
    results = collect(runs)
    write_results(results, output / "figure2.json")
    draw(results, output / "figure2.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(figure_parser().parse_args()))
