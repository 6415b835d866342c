"""`being-vl train-bpe`: codes → image_bpe.json.

Reads a `.npy` array or parquet shards, on all cores, or in several processes under `torchrun` or
`accelerate launch`. A training that was killed goes on from its last checkpoint when the same command runs
again, and ends with the same bytes.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from rich.filesize import decimal

from ..files import place, write_atomic
from .loading import marked_frames, open_codes
from .options import add, answer, options, refuse_used
from .parsing import Parser

if TYPE_CHECKING:
    from ..bpe.training.checkpoints import Checkpoint
    from ..bpe.training.options import Progress
    from ..bpe.training.processes import Processes

_OPTIONS = (
    "codebook_size", "min_count", "max_cells", "max_token_extent", "scoring", "merge_rule",
    "spatial_weight", "spatial_sigma",
)  # fmt: skip


def make_parser() -> Parser:
    parser = Parser(
        "Train the image BPE on grids of codes: OUTPUT/image_bpe.json.",
        epilog="Several machines: torchrun … -m being_vl train-bpe …; it seldom pays.",
        json="print a summary as JSON",
    )
    add(parser, "codes", required=True)
    add(parser, "verify")
    add(parser, "output", help="folder of image_bpe.json", required=True)
    add(parser, "resume")
    options(
        parser,
        ("num-merges", NonNegativeInt, 8192, "rules to learn"),
        ("codebook-size", PositiveInt | None, None, "K; default: what the shards say"),
        ("min-count", PositiveInt, 2, "stop below this count"),
        ("max-cells", PositiveInt | None, None, "most cells of a token"),
        ("max-token-extent", PositiveInt | None, None, "most rows and columns of a token"),
        ("scoring", Literal["frequency", "spatial"], "frequency", "what chooses the next rule"),
        ("merge-rule", Literal["shape", "pair"], "shape", "pair is the paper's; its tokens cannot be decoded"),
    )  # fmt: skip
    add(parser, "num-threads")
    videos = parser.rare("codes of videos")
    options(
        videos,
        ("repeat-code", bool | None, None,
         "mark what a frame repeats of the one before; default: where the codes are of videos"),
    )  # fmt: skip
    add(videos, "key-frame-interval")
    rare = parser.rare("spatial scoring, memory, checkpoints")
    options(
        rare,
        ("sample", PositiveInt | None, None, "count a random sample of so many grids"),
        ("spatial-weight", NonNegativeFloat, 0.3, "weight of the consistency"),
        ("spatial-sigma", PositiveFloat, 1.0, "in cells"),
        ("memory-limit-gb", PositiveFloat | None, None, "of cells and positions, per process"),
        ("checkpoint-every", PositiveFloat, 60.0, "seconds between checkpoints"),
    )
    add(rare, "seed", help="decides which grids --sample takes")
    return parser


def main(args: Namespace) -> int:
    from ..bpe.training.checkpoints import lock_folder
    from ..bpe.training.processes import GlooProcesses, OneProcess

    output = place(args.output)
    refuse_used(args, output, "*.json")
    processes = GlooProcesses() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else OneProcess()
    with lock_folder(output) if processes.rank == 0 else nullcontext():
        _train(args, output, processes)
    processes.close()
    return 0


def _train(args: Namespace, output: Path, processes: Processes) -> None:
    from ..bpe.image_bpe import ImageBPE
    from ..bpe.training.trainer import train_merges

    started = time.perf_counter()
    imported = place(args.output) / "codes.parquet"
    codes = open_codes(args.codes, args.codebook_size, imported, verify=args.verify)
    args.codebook_size = getattr(codes, "codebook_size", args.codebook_size)  # a path has none
    codes, repeat_code = _with_repeats(args, codes)
    options = {name: args[name] for name in _OPTIONS}
    stored = options
    if repeat_code is not None:
        options["codebook_size"] = repeat_code + 1
        stored = {**options, "key_frame_interval": args.key_frame_interval}
    if args.sample is not None:
        codes = _sampled(args, codes)
        stored = {**stored, "sample": args.sample, "seed": args.seed}
    _say_what_it_takes(args, codes, processes)
    checkpoint = _common_checkpoint(output, stored, processes)
    if processes.rank == 0:
        write_atomic(output / "train-bpe.yaml", make_parser().dump(args))
    with _Report(output, stored, args, checkpoint, silent=processes.rank > 0) as report:
        merges = train_merges(
            codes,
            num_merges=args.num_merges,
            **options,
            num_threads=args.num_threads,
            memory_limit=int(args.memory_limit_gb * 1e9) if args.memory_limit_gb else None,
            checkpoint=checkpoint,
            progress=report,
            processes=processes,
        )
    if processes.rank > 0:
        return
    bpe = ImageBPE(
        merges, options["codebook_size"], merge_rule=args.merge_rule, repeat_code=repeat_code
    )
    bpe.save_pretrained(output)
    summary = {
        "output": str(output),
        "num_merges": len(merges),
        "resumed_from": 0 if checkpoint is None else min(len(checkpoint.merges), len(merges)),
        "tokens_per_image": report.tokens_per_image,
        "seconds": round(time.perf_counter() - started, 3),
    }
    answer(args, summary, f"{output}: {len(merges)} merges", sys.stderr)
    if len(merges) < args.num_merges:
        print(
            f"warning: {len(merges)} of the {args.num_merges} merges asked for: no further pair of tokens within "
            f"the limits occurs {args.min_count} times (--min-count)",
            file=sys.stderr,
        )


def _sampled(args: Namespace, codes: Any) -> Any:
    from ..codes.shards import CodeShards, SampledShards

    if not isinstance(codes, CodeShards):
        raise ValueError("--sample is for shards of images, as being-vl encode writes them")
    return SampledShards(codes, args.sample, args.seed)


# Measured: docs/plan.md has the commands. Bytes a code: what cells take; what they and positions take where memory is
# not limited; sorting takes `SORTED_BYTES` of what is sorted at a time. 8,192 merges of photographs and of synthetic
# grids took 17 to 18 at 8 million codes, 15 to 16 at 34, 12 at 61 and 9 to 10 at 123 million; codes that are mostly one
# code took 44. Seconds a code of one thread, for 8,192 merges.
_CELL_BYTES, _USUAL_BYTES, _SECONDS = 4.25, 8.0, 6e-8


def free_memory() -> int | None:
    """Bytes that this process may still take, of the machine's and its control group's; None where nobody says."""
    found = []
    if os.path.exists("/proc/meminfo"):
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").exists() and (limit := (group / "memory.max").read_text()) != "max\n":
        found.append(int(limit) - int((group / "memory.current").read_text()))
    return min(found, default=None)


def _say_what_it_takes(args: Namespace, codes: Any, processes: Processes) -> None:
    """Estimates of memory and time, before the start; refuses what cannot fit into the memory that is free."""
    from ..bpe.training.options import SORTED_BYTES, usual_room

    cells = getattr(codes, "num_cells", None)  # a path and marked frames do not say it
    free = free_memory()
    if cells is None or processes.rank > 0:
        return
    own = cells // processes.size
    sorting = min(own * SORTED_BYTES, usual_room(own * SORTED_BYTES))
    usual, least = int(own * _USUAL_BYTES + sorting), int(own * _CELL_BYTES)
    print(
        f"{len(codes):,} grids, {cells:,} codes: about {decimal(usual)} of memory, at least {decimal(least)} "
        f"with --memory-limit-gb; some {max(1, own * _SECONDS):,.0f} CPU seconds",
        file=sys.stderr,
    )
    if free is not None and least > free:
        # a smaller sample sorts more of its cells at once
        fitting = int(len(codes) * free / (own * (_USUAL_BYTES + SORTED_BYTES)))
        raise ValueError(
            f"{args.codes}: needs at least {decimal(least)} of memory, and {decimal(free)} are free: "
            f"--sample {fitting} takes a random sample that fits; torchrun shares the grids out among machines"
        )


def _with_repeats(args: Namespace, codes: Any) -> tuple[Any, int | None]:
    """The codes, marked where they are of videos, and the repeat code."""
    has_videos = getattr(codes, "has_videos", False)  # a path has none
    if args.repeat_code and not has_videos:
        raise ValueError(
            f"--repeat-code: {args.codes} does not say which grids are frames of one video"
        )
    if not has_videos or args.repeat_code is False:
        if args.key_frame_interval is not None:
            raise ValueError("--key-frame-interval is for codes of videos, with repeat codes")
        return codes, None
    return marked_frames(codes, key_frame_interval=args.key_frame_interval), args.codebook_size


def _common_checkpoint(
    output: Path, options: dict[str, Any], processes: Processes
) -> Checkpoint | None:
    """The first process's checkpoint, in all processes."""
    import numpy as np

    from ..bpe.training.checkpoints import Checkpoint, load_checkpoint

    rows = np.empty((0, 5), np.int64)
    if processes.rank == 0:
        own = load_checkpoint(output, options)
        if own is not None:
            rows = np.concatenate([own.merges, own.counts[:, None]], axis=1)
    rows = processes.join(rows)
    return Checkpoint(rows[:, :4].astype(np.int32), rows[:, 4]) if len(rows) else None


class _Report:
    """The progress bar, and the checkpoints."""

    def __init__(
        self,
        output: Path,
        options: dict[str, Any],
        args: Namespace,
        checkpoint: Checkpoint | None,
        silent: bool,
    ):
        from tqdm import tqdm

        self._output, self._options, self._every = output, options, args.checkpoint_every
        self._silent = silent
        done = 0 if checkpoint is None else min(len(checkpoint.merges), args.num_merges)
        self._bar = tqdm(total=args.num_merges, initial=done, unit="merge", disable=silent)
        self._bar.set_postfix_str("counting; the first time, compiling")
        self._saved_at = time.monotonic()
        self._last: Progress | None = None

    def __enter__(self) -> _Report:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
        if self._last is not None and not self._silent:
            self._save(self._last)

    @property
    def tokens_per_image(self) -> float | None:
        """After the last merge that this run has made."""
        return None if self._last is None else round(self._last.tokens_per_grid, 3)

    def __call__(self, progress: Progress) -> None:
        self._last = progress
        counts = progress.checkpoint.counts
        self._bar.set_postfix(
            count=int(counts[-1]) if len(counts) else 0,
            tokens_per_image=f"{progress.tokens_per_grid:.1f}",
            refresh=False,
        )
        self._bar.update(len(counts) - self._bar.n)
        if not self._silent and time.monotonic() - self._saved_at >= self._every:
            self._save(progress)

    def _save(self, progress: Progress) -> None:
        from ..bpe.training.checkpoints import save_checkpoint

        save_checkpoint(self._output, progress.checkpoint, self._options)
        self._saved_at = time.monotonic()
