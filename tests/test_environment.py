"""The command env: what it tells, and what it finds broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import torch

from being_vl import environment
from being_vl.cli import main


def test_env_command(capsys):
    status = main(["env", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["devices"][-1].startswith("cpu")
    assert status == int(bool(facts["problems"]))
    assert main(["env"]) == status
    assert f"torch: {torch.__version__}" in capsys.readouterr().out


def test_a_torchvision_of_another_torch_is_found(tmp_path):
    """As after `pip install lmms-eval` on a machine without CUDA."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(
        'raise RuntimeError("operator torchvision::nms does not exist")\n'
    )
    (tmp_path / "torchvision-9.9.dist-info").mkdir()
    (tmp_path / "torchvision-9.9.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 9.9\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    code = "from being_vl.environment import torchvision_problem; print(torchvision_problem())"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "torchvision 9.9 does not fit" in run.stdout
    assert "torchvision::nms does not exist" in run.stdout
    assert "pip uninstall torchvision" in run.stdout


def test_an_untested_lmms_eval_is_named(monkeypatch):
    versions = {"lmms-eval": "0.8.0"}
    monkeypatch.setattr(environment, "_version", versions.get)
    (problem,) = environment.describe()["problems"]
    assert "lmms-eval 0.8.0" in problem and environment.LMMS_EVAL_TESTED in problem
    versions["lmms-eval"] = environment.LMMS_EVAL_TESTED
    assert environment.describe()["problems"] == []
