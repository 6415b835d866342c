"""`being-vl push`: a folder → a repository on the Hub, in one commit."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from .options import flag, option
from .parsing import Parser

if TYPE_CHECKING:
    from ..hub.folder import Plan


def make_parser() -> Parser:
    parser = Parser(
        "Push a checkpoint, a quantizer, a vocabulary (model repositories) or code shards (a data set repository) "
        "to the Hub. The folder is checked first; a card is made if it has none. The commit is atomic; "
        "pushing again sends only missing files.",
        json="print the answer as JSON",
    )
    parser.add_argument("folder", type=str, help="what to push")
    parser.add_argument("repo", type=str, help="NAME or NAMESPACE/NAME; made if it does not exist")
    flag(parser, "private", "make it a private repository")
    option(parser, "revision", str, "branch, made if missing; default: main")
    flag(parser, "create-pr", "open a pull request instead")
    option(parser, "message", str, "first line of the commit's message")
    option(
        parser, "include", str, "patterns of more files, such as '*.yaml'", nargs="+", default=[]
    )
    flag(parser, "dry-run", "say what would go, without a connection")
    return parser


def main(args: Namespace) -> int:
    import being_vl  # noqa: F401  (the Auto classes know our models)

    from ..hub.commit import Target, commit_files
    from ..hub.folder import planned

    target = Target(
        args.repo,
        private=True if args.private else None,
        revision=args.revision,
        create_pr=args.create_pr,
        commit_message=args.message,
    )
    with planned(Path(args.folder), args.include) as plan:
        answer = {
            "repo": args.repo,
            "repo_type": plan.repo_type,
            "files": {name: path.stat().st_size for name, path in plan.files.items()},
            "bytes": plan.num_bytes,
            "left_out": plan.left_out,
        }
        for name in plan.outdated_card:
            print(f"warning: {name} is newer than README.md: run being-vl card", file=sys.stderr)
        if not args.json:
            print("\n".join(_lines(plan)))
        if not args.dry_run:
            commit = commit_files(plan.files, replace(target, repo_type=plan.repo_type))
            answer |= {"url": str(commit.pr_url or commit.commit_url), "commit": commit.oid}
    if args.json:
        print(json.dumps(answer))
    elif args.dry_run:
        print(f"dry run: nothing was sent to {args.repo}")
    else:
        print(f"pushed: {answer['url']}")
    return 0


def _lines(plan: Plan) -> list[str]:
    lines = [f"{path.stat().st_size:>15,}  {name}" for name, path in plan.files.items()]
    lines.append(f"{plan.num_bytes:>15,}  bytes in {len(plan.files)} files ({plan.repo_type})")
    shown = ", ".join(plan.left_out[:5]) + (", …" if len(plan.left_out) > 5 else "")
    return [*lines, f"left out ({len(plan.left_out)}): {shown}"] if plan.left_out else lines
