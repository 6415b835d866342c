"""`being-vl results`: result files → tables: tokens per image against accuracy; the paper's, verdicts, lmms-eval's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from .options import add, options
from .parsing import Parser


def make_parser() -> Parser:
    parser = Parser(
        "Tabulate results of being-vl eval: tokens per image and score of each checkpoint and task. With "
        "--verdicts: a judge's wins, ties and losses. With --lmms-eval: convert results of lmms-eval to result "
        "files. With --paper: the paper's Tables 5.1 and C.1 to C.4 and Figure 3 with the folders' scores below.",
        json="print the rows as JSON",
    )
    folders = "checkpoints, or --output of eval"
    parser.add_argument("folders", type=str, nargs="*", default=[], help=folders)
    paper = "the paper's tables, as Markdown, with rows for the folders"
    # no `flag`: a folder may follow
    parser.add_argument("--paper", action="store_true", help=paper)
    add(parser, "output", help="with --lmms-eval: the checkpoint's folder")
    options(
        parser,
        ("verdicts", str, None, "lines with verdict (win, tie or lose) and level", "FILE.jsonl"),
        ("lmms-eval", str, None, "a *_results.json of lmms-eval", "FILE.json"),
        ("hardware", str, None, "with --lmms-eval: what it ran on, in words"),
    )
    return parser


def main(args: Namespace) -> int:
    if args.paper:
        return _print_paper_tables(args)
    given = [name for name in ("folders", "verdicts", "lmms_eval") if args[name]]
    if len(given) != 1:
        raise ValueError("name one of: folders with results, --verdicts, --lmms-eval")
    if args.verdicts is not None:
        rows = _verdict_rows(Path(args.verdicts))
    elif args.lmms_eval is not None:
        rows = _import_lmms_eval(args)
    else:
        rows = _comparison_rows(args.folders)
    if args.json:
        print(json.dumps(rows))
    else:
        _print_table(rows)
    return 0


def _comparison_rows(folders: list[str]) -> list[dict[str, Any]]:
    from ..evaluation.results import comparison_rows
    from ..files import load_results

    results: dict[Any, Any] = {folder: load_results(folder) for folder in folders}
    for folder, found in results.items():
        if not found:
            raise FileNotFoundError(f"{folder}: no results in {folder}/evaluation")
    return comparison_rows(results)


def _print_paper_tables(args: Namespace) -> int:
    from ..files import load_results, reading
    from ..studies.paper import paper_tables

    if args.verdicts is not None or args.lmms_eval is not None or args.json:
        raise ValueError("--paper takes folders alone, and prints Markdown")
    results = {folder: load_results(folder) for folder in args.folders}
    checkpoints = [folder for folder in args.folders if (Path(folder) / "config.json").exists()]
    weights = {}
    if checkpoints:
        from ..studies.ablation.scoring import image_row_weights

        for folder in checkpoints:
            with reading(folder):
                weights[folder] = image_row_weights(folder)
    print(paper_tables(results, weights))
    return 0


def _import_lmms_eval(args: Namespace) -> list[dict[str, Any]]:
    """Write the result files; a row for each metric."""
    from ..evaluation.lmms_eval.results import read_lmms_eval

    if args.output is None or args.hardware is None:
        raise ValueError(
            "--lmms-eval needs --output FOLDER, and --hardware, which its file does not say"
        )
    results = read_lmms_eval(Path(args.lmms_eval), hardware=args.hardware)
    for result in results:
        result.save(args.output)
    return [
        {"task": result.task, "metric": name, "value": value, "num_examples": result.num_examples}
        for result in results
        for name, value in result.metrics.items()
    ]


def _verdict_rows(path: Path) -> list[dict[str, Any]]:
    from ..evaluation.benchmark_files import read_json_lines
    from ..evaluation.scoring.pairwise import pairwise_table

    verdicts = read_json_lines(path)
    try:
        table = pairwise_table(verdicts)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return [{"level": level, **counts} for level, counts in table.items()]


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    if not rows:
        print("no result knows its tokens per image")
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name, value in rows[0].items():
        numeric = isinstance(value, (int, float))
        table.add_column(
            name.replace("_", " "), justify="right" if numeric else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)
