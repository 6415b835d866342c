"""`being-vl env`: this machine → versions and devices, and a check of what is known to break."""

from __future__ import annotations

import json

from jsonargparse import ArgumentParser, Namespace


def make_parser() -> ArgumentParser:
    """The options of the command."""
    parser = ArgumentParser(
        description="Print versions and devices for a bug report, and check what is known to break; exit "
        "status 1 if something is."
    )
    parser.add_argument("--config", action="config", help="YAML file of these options")
    parser.add_argument("--json", action="store_true", help="print them as JSON")
    return parser


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
    for problem in facts["problems"]:
        print(f"problem: {problem}")
    return int(bool(facts["problems"]))
