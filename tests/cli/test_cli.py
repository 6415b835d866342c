"""The dispatcher: fast help, one line and status 2 on bad input."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys

import pytest

from being_vl.cli import COMMANDS, main


def run(*args: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "being_vl", *args],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
    )


def test_help_is_quick_and_lists_every_command():
    def cpu_seconds() -> float:
        before = os.times()
        assert run("--help").returncode == 0
        after = os.times()
        return (
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        )

    assert statistics.median(cpu_seconds() for _ in range(3)) < 0.5
    text = run("--help").stdout
    assert all(f"\n  {name} " in text for name in COMMANDS)


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom being_vl.cli import main\nmain(['--help'])\n"
        "heavy = {'torch', 'transformers', 'numba', 'numpy'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("word", ["--version", "no-command"])
def test_a_process_that_is_done_leaves_the_others(word, tmp_path):
    """After an error the others may wait in a collective, and leaving would wait for them."""
    code = (
        "import sys\nimport torch.distributed as group\nfrom being_vl.cli import main\n"
        f"group.init_process_group('gloo', init_method='file://{tmp_path}/store', rank=0, world_size=1)\n"
        "main()\nassert group.is_initialized() != (sys.argv[1] == '--version')"
    )
    done = subprocess.run([sys.executable, "-c", code, word], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["train-bpe", "--help"]])
def test_a_pipe_without_a_reader_is_no_error(words):
    """As of `being-vl --help | head -1`; the text waits in the buffer until the end."""
    reader, writer = os.pipe()
    os.close(reader)
    run = [sys.executable, "-m", "being_vl", *words]
    done = subprocess.run(run, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_a_config(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: being-vl {name} ")
    assert "--config" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_an_unknown_option(name):
    done = run(name, "--no-such-option", "1")
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"being-vl {name}: error: unrecognized arguments: --no-such-option"
    )
    assert done.stderr.count("\n") == 1


def test_unknown_command(capsys):
    assert main(["trian"]) == 2
    assert "no command 'trian'; did you mean 'train'?" in capsys.readouterr().err
    assert main(["zzz"]) == 2
    assert "no command 'zzz'; there are: quickstart, " in capsys.readouterr().err


def test_no_command_shows_the_usage():
    assert main([]) == 2


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("being-vl 0.")


def test_config_file_is_overridden_by_flags(tmp_path):
    (tmp_path / "options.yaml").write_text("minutes: 2.5\nseed: 7\n")
    done = run(
        "quickstart", "--config", str(tmp_path / "options.yaml"), "--seed", "8", "--print-config"
    )
    assert done.returncode == 0
    assert "minutes: 2.5" in done.stdout and "seed: 8" in done.stdout


def test_unknown_key_in_a_config_file(tmp_path):
    (tmp_path / "options.yaml").write_text("minuets: 2.5\n")
    done = run("quickstart", "--config", str(tmp_path / "options.yaml"))
    assert done.returncode == 2
    assert "minuets" in done.stderr


def test_a_misspelt_option_gets_a_suggestion(capsys, tmp_path):
    (tmp_path / "options.yaml").write_text("minuets: 2.5\n")
    for argv, message in (
        (["encode", "--quantzer", "x"], "unrecognized arguments: --quantzer x; did you mean --quantizer?"),
        (["stats", "x", "--codes", "y", "--num_threads", "2"], "did you mean --num-threads?"),
        (["train", "--output-dir", "x"], "did you mean --output_dir?"),
        (["train-vq", "--model.resoluton", "x"], "did you mean --model.resolution?"),
        (
            ["quickstart", "--config", str(tmp_path / "options.yaml")],
            f"{tmp_path}/options.yaml: Option 'minuets' is not accepted; did you mean minutes?",
        ),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            main(argv)
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert error.startswith(f"being-vl {argv[0]}: error: ") and message in error


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: &a [1, 1]\nb: &b [*a, *a]\nminutes: *b\n", "aliases (*name) are not allowed"),
        ("minutes: " + "[" * 5000 + "]" * 5000, "options.yaml: "),
        (f"minutes: 2\nseed: {1 << 32}\n", "seed"),
        (f"minutes: 2\nseed: 0x{'f' * 6000}\n", "an integer of 6002 characters"),
        ("minutes: 2\nseed: 1\nminutes: 3\n", "line 3: the key 'minutes' stands there twice"),
        ("minutes: " + "1" * (1 << 20), "larger than 1048576 characters"),
        ("minutes: [1\n", "options.yaml: "),
        ("minutes: 1" + "0" * 400, "options.yaml: cannot be read: int too large"),
        ("rows:\n  rows: []\n", "options.yaml: "),
        ("- 1\n", "options.yaml: "),
    ],
    ids=lambda text: text[:20],  # pytest puts them into the environment, where Linux takes 128 KiB
)
def test_a_hostile_config_file(text, message, tmp_path):
    (tmp_path / "options.yaml").write_text(text)
    done = run("quickstart", "--config", str(tmp_path / "options.yaml"))
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1 and len(done.stderr) < 2000


def test_a_config_file_that_never_ends(tmp_path, capsys):
    path = tmp_path / "options.yaml"
    os.mkfifo(path)
    assert main(["quickstart", "--config", str(path)]) == 2
    assert f"{path}: not a regular file" in capsys.readouterr().err
    path.unlink()
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    assert main(["quickstart", "--config", str(path)]) == 2
    assert "larger than" in capsys.readouterr().err


def test_an_unexpected_error_is_one_line(monkeypatch, capsys):
    def fail(args):
        raise KeyError("missing")

    monkeypatch.setattr("being_vl.cli.env.main", fail)
    assert main(["env"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("being-vl env: error: unexpected KeyError") and error.count("\n") == 1
    with pytest.raises(KeyError):
        main(["env", "--traceback"])


def test_traceback_on_request(tmp_path):
    (tmp_path / "file").write_text("")
    for more in ((), ("--traceback",)):
        done = run("quickstart", "--output", str(tmp_path / "file"), *more)
        assert ("Traceback" in done.stderr) == bool(more)


def test_a_terminal_without_utf_8():
    done = run("ablate", "--help", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0 and "VQ+BPE} ? {SFT" in done.stdout


def test_garbage_is_collected_as_usual_after_the_imports():
    """The first search comes after half a million objects; then the thresholds are the interpreter's again."""
    code = """
import gc, json, weakref
from being_vl import cli

class Node: pass

usual, frozen, seen = gc.get_threshold(), gc.get_freeze_count(), []

def command(name, argv):
    node = Node()
    node.itself = node
    gone = weakref.ref(node)
    del node
    few = [[] for _ in range(100_000)]
    seen.append((gc.get_threshold() == usual, gone() is None, len(gc.callbacks), gc.get_freeze_count() > frozen))
    many = [[] for _ in range(500_000)]
    seen.append((gc.get_threshold() == usual, gone() is None, len(gc.callbacks), gc.get_freeze_count() > frozen))
    return 0

cli.run_command = command
cli.main(["env"])
print(json.dumps(seen))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == [[False, False, 1, False], [True, True, 0, True]]


def test_what_a_later_task_needs_is_missed_before_the_first(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    assert main(["eval", "checkpoint", "--tasks", "easyvqa,reconstruction"]) == 2
    assert "SSIM needs torchmetrics: pip install being-vl[vq]" in capsys.readouterr().err
