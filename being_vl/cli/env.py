"""`being-vl env`: this machine → versions and devices, and a check of what is known to break."""

from __future__ import annotations

import json

from jsonargparse import Namespace

from .parsing import Parser


def make_parser() -> Parser:
    """The options of the command."""
    return Parser(
        "Print versions and devices for a bug report, and check what is known to break; exit status 1 if "
        "something is.",
        json="print them as JSON",
    )


def main(args: Namespace) -> int:
    """Run the command; the exit status is 1 if there is a problem."""
    from .environment import describe

    facts = describe()
    if args.json:
        print(json.dumps(facts))
        return int(bool(facts["problems"]))
    print(f"python: {facts['python']}\nplatform: {facts['platform']}")
    for name, version in facts["packages"].items():
        print(f"{name}: {version or 'not installed'}")
    for device in facts["devices"]:
        print(f"device: {device}")
    print(f"java: {facts['java'] or 'not found'}")
    for missing in facts["missing"]:
        print(f"missing: {missing['feature']}: {missing['brings']}")
    for problem in facts["problems"]:
        print(f"problem: {problem}")
    return int(bool(facts["problems"]))
