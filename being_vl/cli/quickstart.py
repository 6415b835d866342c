"""The main job end to end on easy-VQA: pixels → codes → merges → ids → answers, in minutes on a CPU."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace


def make_parser() -> ArgumentParser:
    from being_vl.studies.quickstart.settings import Settings

    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--config", action="config", help="a YAML file of these options")
    parser.add_class_arguments(Settings)
    return parser


def main(args: Namespace) -> None:
    from being_vl.studies.quickstart.settings import Settings

    options = {name: value for name, value in vars(args).items() if name != "config"}
    settings = Settings(**options)

    from being_vl.studies.quickstart.pipeline import run

    run(settings)
