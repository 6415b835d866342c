"""The command env: what it tells, and what it finds broken."""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from being_vl.cli import env as environment
from being_vl.cli import main


def test_env_command(capsys):
    status = main(["env", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["devices"][-1].startswith("cpu")
    assert status == int(bool(facts["problems"]))
    assert main(["env"]) == status
    assert f"torch: {torch.__version__}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "package, error, mended_by",
    [
        (
            "torchvision",
            'RuntimeError("operator torchvision::nms does not exist")',
            "pip uninstall torchvision timm",
        ),
        ("timm", "ModuleNotFoundError(\"No module named 'torchvision'\")", "pip uninstall timm"),
    ],
)
def test_a_package_that_breaks_others_is_found(package, error, mended_by, tmp_path):
    """As after `pip install lmms-eval` on a machine without CUDA, and after half of the remedy."""
    if package == "timm" and importlib.util.find_spec("torchvision"):
        pytest.skip("this environment has the torchvision that timm would lack")
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(f"raise {error}\n")
    (tmp_path / f"{package}-9.9.dist-info").mkdir()
    (tmp_path / f"{package}-9.9.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {package}\nVersion: 9.9\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    code = f"from being_vl.cli.env import {package}_problem; print({package}_problem())"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{package} 9.9" in run.stdout and "torchvision" in run.stdout
    assert mended_by in run.stdout


def test_an_untested_lmms_eval_is_named(monkeypatch):
    versions = {"lmms-eval": "0.8.0"}
    monkeypatch.setattr(environment, "_version", versions.get)
    (problem,) = environment.describe()["problems"]
    assert "lmms-eval 0.8.0" in problem and environment.LMMS_EVAL_TESTED in problem
    versions["lmms-eval"] = environment.LMMS_EVAL_TESTED
    assert environment.describe()["problems"] == []


def test_what_the_environment_lacks_is_named_with_what_brings_it(capsys):
    packages = dict.fromkeys(environment.PACKAGES)
    packages |= {"transformers": "5.19.0", "peft": "0.21.2"}
    missing = {row["feature"]: row["brings"] for row in environment.missing_features(packages)}
    assert missing["DeepSpeed"] == 'pip install "being-vl[deepspeed]"'
    assert not any("LoRA" in feature for feature in missing)
    assert 'pip install "transformers>=5.20"' in missing.values()
    packages["transformers"] = "5.20.1"
    assert "transformers>=" not in str(environment.missing_features(packages))
    main(["env"])
    here = environment.missing_features(environment.describe()["packages"])
    shown = capsys.readouterr().out
    assert all(f"missing: {row['feature']}: {row['brings']}" in shown for row in here)


def test_every_extra_is_named_with_its_packages():
    """What setup.cfg offers is what `env` says brings a feature."""
    parser = configparser.ConfigParser()
    parser.read(Path(__file__).parents[2] / "setup.cfg")
    extras = dict(parser["options.extras_require"])
    del extras["dev"], extras["docs"]  # of those who work on the library
    nothing = environment.missing_features(dict.fromkeys(environment.PACKAGES))
    said = " ".join(row["brings"] for row in nothing)
    for name, packages in extras.items():
        assert f"being-vl[{name}]" in said
        for package in packages.split():
            assert re.split("[<>=[]", package)[0] in environment.PACKAGES


@pytest.mark.parametrize("package", ["torchaudio", "torchcodec"])
def test_builds_that_break_imports_are_named(monkeypatch, package):
    monkeypatch.setattr(environment, "_version", lambda name: "9.9")
    monkeypatch.setattr(environment, "_import_error", lambda name: "OSError: libcudart.so.13")
    problem = environment.build_problem(package)
    assert f"{package} 9.9" in problem and "libcudart" in problem
    assert f"pip uninstall {package}" in problem
