"""`being-vl eval`: a checkpoint → scores on benchmarks, in result files beside it.

On one device or, under `accelerate launch`, on many. A stopped run continues where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from ..files import reading
from .loading import check_part
from .options import add, add_about, option, refuse_used
from .parsing import Parser

if TYPE_CHECKING:
    from ..files import Result

RECONSTRUCTION = "reconstruction"


def make_parser() -> Parser:
    parser = Parser(
        "Score a checkpoint. Results go into evaluation/TASK.json, answers beside them.",
        epilog="Many devices: accelerate launch -m being_vl eval …",
        json="print the results as JSON",
    )
    add_about(parser, "checkpoint")
    tasks = "of easyvqa, pope, vqav2, mme, llava, caption, mllm_bench, reconstruction"
    option(parser, "tasks", str, tasks, metavar="NAME,...", required=True)
    own: dict[str, Any] = {"nargs": "*", "default": []}
    files = "the benchmark's own files, for each task (easyvqa needs none)"
    add(parser, "data", metavar="TASK=PATH", help=files, **own)
    images = "images, if they are not with the data"
    add(parser, "images", metavar="TASK=FOLDER", help=images, **own)
    add(parser, "output", help="folder of evaluation/; default: the checkpoint's")
    add(parser, "resume")
    add(parser, "limit", help="the first questions of each task only; default: all")
    add(parser, "batch-size", default=64, help="questions at a time")
    add(parser, "max-new-tokens", help="default: the task's own")
    add(parser, "device", "dtype")
    rare = parser.rare("files")
    option(rare, "cache", str, "of codes; default: $BEING_VL_CACHE", metavar="FOLDER")
    add(rare, "rfid-weights")
    option(rare, "spice-jar", str, "caption: spice-1.0.jar", metavar="FILE")
    return parser


def main(args: Namespace) -> int:
    from ..evaluation.tasks import TASKS, load_task

    names = [name.strip() for name in args.tasks.split(",") if name.strip()]
    known = [*TASKS, RECONSTRUCTION]
    for name in names:
        if name not in known:
            raise ValueError(f"--tasks: no task {name!r}; there are: {', '.join(known)}")
    if not names:
        raise ValueError("--tasks: names no task")
    if RECONSTRUCTION in names:
        from ..quantizers.metrics import ssim_function

        ssim_function()  # what is not installed is said now, not after the other tasks
    data, images = _paths(args, "data", names), _paths(args, "images", names)
    output = _output(args)
    check_part("checkpoint", args.checkpoint)
    for name in names:
        refuse_used(args, output, f"evaluation/{name}*")
    tasks = [
        load_task(name, data.get(name), images.get(name), spice_jar=args.spice_jar).limited(
            args.limit
        )
        for name in names
        if name != RECONSTRUCTION
    ]
    results = _answered(args, tasks, output) if tasks else []
    if RECONSTRUCTION in names:
        results.append(_reconstructed(args, data.get(RECONSTRUCTION), output))
    made = [result for result in results if result is not None]
    if made:  # the first process
        _report(args, made, output)
    return 0


def _answered(args: Namespace, tasks: list[Any], output: Path) -> list[Result | None]:
    """The results of tasks with questions; None on all processes but the first."""
    from ..evaluation.runner import Evaluator

    evaluator = Evaluator(
        args.checkpoint,
        output=output,
        device=args.device,
        dtype=args.dtype,
        cache=args.cache,
        batch_size=args.batch_size,
    )
    return [evaluator.run(task, max_new_tokens=args.max_new_tokens) for task in tasks]


def _reconstructed(args: Namespace, data: Path | None, output: Path) -> Result | None:
    """Of the images of a folder, or of easy-VQA's test split; one process does it."""
    from accelerate import PartialState
    from tqdm import tqdm
    from transformers import AutoProcessor

    import being_vl  # noqa: F401  (the Auto classes know our models)

    from ..data.quantizing import FolderSource
    from ..evaluation.easyvqa import load_easyvqa
    from ..evaluation.reconstruction import evaluate_reconstruction
    from ..evaluation.tasks import limited_dataset, named
    from ..files import result_path

    state = PartialState(cpu=args.device == "cpu")
    if not state.is_main_process:
        return None
    if data is None:
        task, images = RECONSTRUCTION, list(load_easyvqa("test").image_paths.values())
        dataset = {"name": "easy-VQA", "id": None, "split": "test"}
    else:
        files = FolderSource(data, shard_size=1).files
        images = [str(data / name) for name, _, _ in files]
        dataset = {"name": data.resolve().name, "id": None, "split": None}
        task = named(RECONSTRUCTION, data.resolve().name)
        looks = [(name, size) for name, size, _ in files]
        dataset["digest"] = hashlib.sha256(json.dumps(looks).encode()).hexdigest()[:16]
    if args.limit is not None:
        images = images[: args.limit]
        dataset = limited_dataset(dataset, len(images))
    result_path(output, task, dataset, "being_vl")  # said now, not after the work
    with reading(args.checkpoint):
        processor = AutoProcessor.from_pretrained(
            args.checkpoint, vq_device=args.device or state.device
        )
    with tqdm(total=len(images), desc=RECONSTRUCTION, unit="image") as bar:
        result = evaluate_reconstruction(
            processor,
            images,
            dataset=dataset,
            task=task,
            rfid_weights=args.rfid_weights,
            batch_size=args.batch_size,
            progress=bar.update,
        )
    result.save(output)
    return result


def _paths(args: Namespace, option: str, names: list[str]) -> dict[str, Path]:
    """TASK=PATH, or one path where there is one task."""
    paths = {}
    for entry in args[option]:
        name, equals, path = entry.partition("=")
        if not equals and len(names) == 1:
            name, path = names[0], entry
        if name not in names:
            raise ValueError(
                f"--{option} {entry}: must be TASK=PATH, of one of the tasks {', '.join(names)}"
            )
        paths[name] = Path(path)
        if not paths[name].exists():
            raise FileNotFoundError(f"--{option} {name}={path}: no such file or folder")
    return paths


def _output(args: Namespace) -> Path:
    """The folder of the results, which can be written."""
    if args.output is None and not os.path.isdir(args.checkpoint):
        raise ValueError(f"{args.checkpoint} is no folder: name one for the results with --output")
    output = Path(args.output or args.checkpoint)
    output.mkdir(parents=True, exist_ok=True)
    if not os.access(output, os.W_OK | os.X_OK):
        raise PermissionError(f"{output} cannot be written: name a folder with --output")
    return output


def _report(args: Namespace, results: list[Result], output: Path) -> None:
    from dataclasses import asdict

    from ..files import RESULTS_FOLDER, write_atomic

    resolved = make_parser().dump(args)
    for result in results:
        write_atomic(output / RESULTS_FOLDER / f"{result.task}.yaml", resolved)
    if args.json:
        print(json.dumps([asdict(result) for result in results]))
        return
    for result in results:
        print(
            f"{result.task}: {result.num_examples} examples in {result.seconds:.0f} s, "
            f"{result.images['codes_per_image']:.1f} codes and "
            f"{result.images['tokens_per_image']:.1f} tokens an image"
        )
        width = max(map(len, result.metrics), default=0)
        for name, value in result.metrics.items():
            print(f"  {name:<{width}}  {value:.2f}")
    print(f"written to {output / RESULTS_FOLDER}", file=sys.stderr)
