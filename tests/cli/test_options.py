"""One name for one thing: the options of all commands, side by side."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys

import pytest

from being_vl.cli import COMMANDS, train
from being_vl.cli.options import SHARED
from being_vl.cli.parsing import _metavar, _type_text
from being_vl.hub.facts import CardFacts
from being_vl.training.arguments import BeingVLTrainingArguments

PARSERS = {
    name: importlib.import_module(f"being_vl.cli.{name.replace('-', '_')}").make_parser()
    for name in COMMANDS
}
# Names that TrainingArguments or card.yaml fix, whatever the other commands call or type them.
_FIXED = {field.name for field in dataclasses.fields(BeingVLTrainingArguments)}
_SHORT_HELP = 46  # lines of a terminal of 80 columns


def _options(name):
    fixed = _FIXED if name == "train" else set()
    if name == "card":
        fixed = {field.name for field in dataclasses.fields(CardFacts)}
    return [
        action
        for action in PARSERS[name]._actions
        if action.option_strings and action.dest not in fixed
    ]


def test_the_same_name_has_the_same_type_everywhere():
    types = {}
    for name in COMMANDS:
        for action in _options(name):
            option = action.option_strings[-1].lstrip("-").removesuffix("+").replace("_", "-")
            kind = _type_text(getattr(action, "_typehint", None) or action.type)
            types.setdefault(option, {}).setdefault(kind, []).append(name)
    for own in ("accept-mismatch", "format"):  # each command has choices of its own
        types.pop(own)
    assert {option: kinds for option, kinds in types.items() if len(kinds) > 1} == {}


def test_shared_options_are_used_and_declared_once():
    found = {}
    for name, parser in PARSERS.items():
        for action in parser._actions:
            found.setdefault(action.dest.replace("_", "-"), []).append(name)
    assert {option for option in SHARED if len(found.get(option, [])) < 2} == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_spelt_with_hyphens(name):
    for action in _options(name):
        for option in action.option_strings:
            allowed = name == "train" or option.startswith(("--model.", "--losses."))
            assert "_" not in option or allowed, option


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is(name):
    for action in PARSERS[name]._actions:
        assert action.help or action.dest in _FIXED, action.option_strings
        assert _metavar(action) or action.dest == "print_config"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_short_and_quick(name):
    """Half a second of CPU time (the best of three), and about a screen."""
    seconds = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run(
            [sys.executable, "-m", "being_vl", name, "--help"],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "80"},
        )
        after = os.times()
        seconds.append(sum(after[2:4]) - sum(before[2:4]))
    assert done.returncode == 0 and min(seconds) < 0.5
    assert len(done.stdout.splitlines()) <= _SHORT_HELP, done.stdout


def test_the_short_help_of_train_says_what_training_arguments_say():
    defaults = {field.name: field.default for field in dataclasses.fields(BeingVLTrainingArguments)}
    for name, (kind, default, _) in train.COMMON_TRAINING_ARGUMENTS.items():
        assert defaults[name] == default, name
        (action,) = [a for a in PARSERS["train"]._actions if a.dest == name]
        hint = action._typehint
        assert kind is hint or kind in getattr(hint, "__args__", ()), (name, hint)


@pytest.mark.parametrize("name", ["train", "train-vq"])
def test_the_short_help_names_options_that_there_are(name):
    module = importlib.import_module(f"being_vl.cli.{name.replace('-', '_')}")
    known = {option for action in PARSERS[name]._actions for option in action.option_strings}
    for action in module.make_help_parser()._actions:
        assert set(action.option_strings) <= known


def test_switches_stand_alone_or_take_a_value():
    parse = PARSERS["push"].parse_args
    assert parse(["folder", "repo", "--private"]).private is True
    assert parse(["folder", "repo", "--private", "false"]).private is False
    given = ["--checkpoint", "a", "--data", "b", "--output_dir", "c"]
    assert PARSERS["train"].parse_args([*given, "--use_cpu"]).use_cpu is True
    assert PARSERS["train"].parse_args([*given, "--bf16", "false"]).bf16 is False


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--accept_mismatch quantizer --bf16", "accept_mismatch", ["quantizer"]),
        ("--accept_mismatch=quantizer", "accept_mismatch", ["quantizer"]),
        ("--accept_mismatch quantizer chat_template", "accept_mismatch", ["quantizer", "chat_template"]),
        ("--accept_mismatch [quantizer,chat_template]", "accept_mismatch", ["quantizer", "chat_template"]),
        ("--accept_mismatch+ quantizer", "accept_mismatch", ["quantizer"]),
        ("--lora_target_modules 1 yes", "lora_target_modules", ["1", "yes"]),
        ("--train_layers 0 3", "train_layers", [0, 3]),
    ],
)  # fmt: skip
def test_lists_are_words_or_brackets(words, name, value):
    given = ["--checkpoint", "x", "--data", "y", "--stage", "pretrain", "--output_dir", "o"]
    assert PARSERS["train"].parse_args([*given, *words.split()])[name] == value


def test_a_list_of_numbers_takes_no_words(capsys):
    given = ["--checkpoint", "x", "--data", "y", "--stage", "pretrain", "--output_dir", "o"]
    with pytest.raises(SystemExit):
        PARSERS["train"].parse_args([*given, "--train_layers", "first"])
    assert "--train_layers" in capsys.readouterr().err


def test_values_are_of_plain_types():
    """An optimizer's state holds them, and is read without jsonargparse."""
    from being_vl.cli.train_vq import make_parser

    words = (
        "--images i --output o --learning-rate 1e-3 --weight-decay 0.1 --adam-beta1 0.5 --steps 3"
    )
    args = make_parser().parse_args(words.split())
    assert {type(args[n]) for n in ("learning_rate", "weight_decay", "adam_beta1")} == {float}
    assert type(args.steps) is int and args.learning_rate == 1e-3
