"""The parser of every command: short help, one-line errors that suggest a spelling, bounded YAML.

jsonargparse reads types from annotations and options from YAML files. What differs here: `--help` leaves out
the groups of rare options, which `--help-all` shows; metavars name the type; an error is one line.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
import types
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, set_loader
from jsonargparse._loaders_dumpers import yaml_load

from ..files import check_regular, check_yaml

MAX_CONFIG_BYTES = 1 << 20
_PRINTING = ("config", "json", "traceback")
_LISTS_OF_WORDS = (list[str], list[str] | None)
_LISTS = (*_LISTS_OF_WORDS, list[int], list[int] | None)
_NUMBERS = {int: "INT", float: "NUMBER", str: "TEXT", bool: "BOOL"}


class Parser(ArgumentParser):
    """The options of one command.

    Args:
        description: what the command does, in a sentence or three.
        epilog: shown below the options.
        json: what `--json` prints; None for a command without an answer that a program may read.
    """

    def __init__(
        self, description: str = "", *, epilog: str | None = None, json: str | None = None
    ):
        super().__init__(
            description=description,
            epilog=epilog,
            formatter_class=_Formatter,
            add_help=False,
            print_config="--print-config",
        )
        self._rare: list[argparse._ArgumentGroup] = []
        self._lists: dict[str, bool] = {}  # options that take words; whether they are texts
        self._show_rare = False
        self._file, self._reading = "", False  # the last configuration file
        # Only the parser itself, not a group, adds --print-config beside --config.
        self._general = self.add_argument_group("general")
        optionals, self._optionals = self._optionals, self._general
        self.add_argument("-h", "--help", action="help", help="show this help and exit")
        self.add_argument("--help-all", action=_HelpAll, help="also show rare options")
        self.add_argument(
            "--config", action="config", metavar="FILE.yaml", help="options; flags override them"
        )
        printing = self._actions[-1]
        printing.help, printing.metavar = "print the options as such a file, and exit", ""
        if json is not None:
            self.add_argument("--json", action="store_true", help=json)
        self.add_argument("--traceback", action="store_true", help="show an error's traceback")
        self._optionals = optionals
        self._hidden = [printing, self._actions[-1]]

    def rare(self, title: str, description: str | None = None) -> Any:
        """A group of options that only `--help-all` shows."""
        group = self.add_argument_group(title, description)
        self._rare.append(group)
        return group

    def rare_class(self, kind: type, name: str, title: str) -> None:
        """Fields of a dataclass as `--name.field`, in a rare group."""
        self.add_class_arguments(kind, name, help=title)
        self._rare.append(self._action_groups[-1])

    def read_as_hf_argument_parser(self) -> None:
        """`--bf16` for `--bf16 true`, `--train_layers 0 1` for `--train_layers [0,1]`; for options of a dataclass."""
        for action in self._actions:
            hint = getattr(action, "_typehint", None)
            if hint in (bool, bool | None):
                action.nargs, action.const = "?", True
            elif hint in _LISTS:
                self._lists |= dict.fromkeys(action.option_strings, hint in _LISTS_OF_WORDS)

    def format_help(self, formatter: Any = None) -> str:
        groups = list(self._action_groups)
        hidden = [] if self._show_rare else self._rare
        shown = [g for g in groups if g not in hidden and g is not self._general]
        self._action_groups = [*shown, self._general]
        helps = [action.help for action in self._hidden]
        for action in self._hidden if not self._show_rare else ():
            action.help = argparse.SUPPRESS
        try:
            text = super().format_help()
        finally:
            self._action_groups = groups
            for action, help in zip(self._hidden, helps, strict=True):
                action.help = help
        if hidden:
            titles = ", ".join(str(group.title) for group in hidden)
            formatter = self._get_formatter()
            formatter.add_text(f"rare options, shown by --help-all: {titles}")
            text += f"\n{formatter.format_help()}"
        return text

    def parse_args(self, args: Any = None, *more: Any, **kwargs: Any) -> Any:
        """Values of plain types: what a run saves, as optimizers their learning rate, is read without jsonargparse."""
        given = list(sys.argv[1:] if args is None else args)
        return _plain(super().parse_args(self._joined(given), *more, **kwargs))

    def _joined(self, args: list[str]) -> list[str]:
        """The words of a list as one, in brackets."""
        joined: list[str] = []
        while args:
            name, equals, value = args.pop(0).partition("=")
            joined.append(f"{name}{equals}{value}")
            if name not in self._lists or name.endswith("+"):
                continue
            words = [value] if equals else []
            while not equals and args and not args[0].startswith("--"):
                words.append(args.pop(0))
            if words and not words[0].startswith("["):
                quoted = map(json.dumps, words) if self._lists[name] else words
                words = [f"[{','.join(quoted)}]"]
            joined[-1:] = [f"{name}={words[0]}"] if len(words) == 1 else [name, *words]
        return joined

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Any:
        self._file, self._reading = str(cfg_path), True
        if os.path.exists(self._file):
            check_regular(
                self._file
            )  # jsonargparse would wait for a pipe's writer, and read a device for ever
            if os.path.getsize(self._file) > MAX_CONFIG_BYTES:
                raise ValueError(f"{self._file}: larger than {MAX_CONFIG_BYTES} characters")
        try:
            config = super().parse_path(cfg_path, *args, **kwargs)
        except OverflowError as error:
            raise ValueError(f"{self._file}: cannot be read: {error}") from error
        except RuntimeError as error:  # of jsonargparse: the dictionary that it walks over changes
            raise ValueError(
                f"{self._file}: cannot be read: a mapping stands where an option takes words"
            ) from error
        self._reading = False
        return config

    def dump(self, cfg: Namespace, *args: Any, **kwargs: Any) -> str:
        """The configuration, as `--config` takes it: without what says how to print."""
        kept = {key: value for key, value in vars(cfg).items() if key not in _PRINTING}
        return super().dump(Namespace(**kept), *args, **{**kwargs, "skip_validation": True})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line, with a suggestion for a misspelt option, and exit with status 2."""
        text = " ".join(message.split())
        text = re.sub(r'Parser key "([^"]+)":', lambda m: f"{self._flag(m[1])}:", text)
        text = re.sub(
            r"Expected a typing\.Literal\[(.*?)\]\. Got value: ", r"must be one of \1, got ", text
        )
        text = re.sub(
            r"arguments are required: (.*)",
            lambda m: "options are required: " + ", ".join(map(self._flag, m[1].split(", "))),
            text,
        )
        if self._file and (self._reading or "is not accepted" in text):
            text = f"{self._file}: {text}"
        self.exit(2, f"{self.prog}: error: {text}{self._suggestion(text)}\n")

    def _flag(self, key: str) -> str:
        """The option that a key of the configuration belongs to."""
        for action in self._actions:
            if action.dest == key:
                return action.option_strings[-1] if action.option_strings else key.upper()
        return key

    def _suggestion(self, message: str) -> str:
        known = {
            option.lstrip("-").replace("_", "-"): option
            for action in self._actions
            for option in action.option_strings
        }
        wrong = [word for word in message.split() if word.startswith("--")]
        if "unrecognized arguments" not in message:
            wrong = re.findall(r"Option '([^']+)' is not accepted", message)
        for word in wrong:
            name = word.partition("=")[0].lstrip("-").replace("_", "-")
            near = difflib.get_close_matches(name, known, 1, 0.6)
            if near and known[near[0]] != word:
                meant = known[near[0]] if word.startswith("--") else near[0].replace("-", "_")
                return f"; did you mean {meant}?"
        return f"; see {self.prog} --help" if wrong else ""


class _HelpAll(argparse._HelpAction):
    def __call__(self, parser: Any, *args: Any, **kwargs: Any) -> None:
        parser._show_rare = True
        super().__call__(parser, *args, **kwargs)


class _Formatter(DefaultHelpFormatter):
    def __init__(self, prog: str, **kwargs: Any):
        super().__init__(prog, max_help_position=30, **kwargs)

    def _format_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any) -> str:
        """What must be given; the rest is `[options]`."""
        words = [f"usage: {self._prog}"]
        for action in actions:
            if not action.option_strings:
                words.append(_placeholder(action))
            elif action.required:
                words.append(f"{action.option_strings[-1]} {_metavar(action)}")
        return " ".join([*words, "[options]"]) + "\n\n"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """Without jsonargparse's `--name+`, which appends to a list."""
        options = action.option_strings
        action.option_strings = [option for option in options if not option.endswith("+")]
        try:
            return super()._format_action_invocation(action)
        finally:
            action.option_strings = options

    def _metavar_formatter(self, action: argparse.Action, default_metavar: str) -> Any:
        shown = _metavar(action) if action.option_strings else default_metavar
        return lambda size: (shown,) * size

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return _metavar(action)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.nargs == 0 or not action.option_strings or action.default is argparse.SUPPRESS:
            return text
        if action.required:
            return f"{text} (required)"
        if "default:" in text or action.default in (None, [], {}):
            return text
        return f"{text} (default: {yaml_text(action.default)})".lstrip()


def _plain(value: Any) -> Any:
    if isinstance(value, Namespace):
        for name, part in vars(value).items():
            setattr(value, name, _plain(part))
    elif isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    elif isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    elif type(value).__module__.startswith("jsonargparse"):
        return next((kind(value) for kind in (int, float) if isinstance(value, kind)), value)
    return value


def yaml_text(value: Any) -> str:
    """A value on one line, as a configuration file has it."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix("...\n").strip()


def _placeholder(action: argparse.Action) -> str:
    name = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    return f"[{name} ...]" if action.nargs == "*" else name


def _metavar(action: argparse.Action) -> str:
    if getattr(action, "_typehint", None) in (bool, bool | None):
        return "BOOL"  # not {true,false}, which takes the line
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return _type_text(getattr(action, "_typehint", None) or action.type)


def _type_text(hint: Any) -> str:
    """A type as a metavar: INT, NUMBER, TEXT, {a,b}, [INT,...]."""
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in get_args(hint) if part is not type(None)]
        return "|".join(dict.fromkeys(map(_type_text, parts)))
    if get_origin(hint) is Literal:
        return "{" + ",".join(map(str, get_args(hint))) + "}"
    if get_origin(hint) in (list, tuple):
        return f"[{_type_text((*get_args(hint), str)[0])},...]"
    if get_origin(hint) is dict or hint is dict:
        return "{KEY: VALUE,...}"
    for kind, text in _NUMBERS.items():
        if isinstance(hint, type) and issubclass(hint, kind) and not (kind is int and hint is bool):
            return text
    return "TEXT" if hint is None else getattr(hint, "__name__", str(hint)).upper()


def _bounded_yaml(text: str) -> Any:
    """Values and configuration files. Aliases are refused: a few of them expand to gigabytes."""
    if len(text) > MAX_CONFIG_BYTES:
        raise yaml.YAMLError(f"larger than {MAX_CONFIG_BYTES} characters")
    try:
        if "*" in text and any(isinstance(e, yaml.AliasEvent) for e in yaml.parse(text)):
            raise yaml.YAMLError("aliases (*name) are not allowed; put * in quotes")
        check_yaml(yaml.compose(text, yaml.SafeLoader))
        return yaml_load(text)
    except ValueError as error:
        raise yaml.YAMLError(str(error)) from None
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None


set_loader("yaml", _bounded_yaml, exceptions=(yaml.YAMLError,))
