"""The adapter to lmms-eval: its parts without lmms-eval, and lmms-eval itself where it is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from checkpoint_fixtures import tiny_checkpoint
from PIL import Image

from being_vl.cli import main
from being_vl.evaluation.lmms_eval import TASKS_FOLDER
from being_vl.evaluation.lmms_eval.requests import cut_at, generation_options, read_messages
from being_vl.files import load_results
from being_vl.hub.checkpoint import save_checkpoint

ROOT = Path(__file__).parents[2]


def test_messages_become_a_prompt_and_pictures():
    _, processor = tiny_checkpoint()
    pictures = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image", "url": pictures[0]},
                {"type": "text", "text": "and "},
                {"type": "image", "url": pictures[1]},
                {"type": "text", "text": "differ?"},
            ],
        },
    ]
    prompt, found = read_messages(processor, messages)
    assert found == pictures
    assert "<image>and <image>differ?" in prompt and "Be brief." in prompt
    assert prompt.endswith("assistant<|end_header_id|>\n\n")


def test_video_is_refused():
    _, processor = tiny_checkpoint()
    with pytest.raises(ValueError, match="type 'video'"):
        read_messages(processor, [{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}])


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, {"max_new_tokens": 1024, "do_sample": False}),
        (
            {
                "max_new_tokens": 16,
                "temperature": 0,
                "top_p": 1.0,
                "num_beams": 1,
                "do_sample": False,
            },
            {"max_new_tokens": 16, "num_beams": 1, "do_sample": False},
        ),
        ({"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.7, "top_p": 0.9, "do_sample": True}),
        ({"temperature": 0.7, "do_sample": False}, {"do_sample": False}),
        ({"until": ["\n"], "top_p": None}, {"do_sample": False}),
    ],
)
def test_generation_options(given, expected):
    assert generation_options(given) == {"max_new_tokens": 1024, **expected}


@pytest.mark.parametrize(
    "until, cut",
    [(None, "a\n\nb###c"), ("\n\n", "a"), (["###", "\n\n"], "a"), ([""], "a\n\nb###c")],
)
def test_answers_are_cut(until, cut):
    assert cut_at("a\n\nb###c", until) == cut


def test_the_tasks_folder_is_printed():
    run = subprocess.run(
        [sys.executable, "-m", "being_vl.evaluation.lmms_eval"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert Path(run.stdout.strip()) == TASKS_FOLDER
    assert (TASKS_FOLDER / "easyvqa.yaml").is_file()


def lmms_eval_file(path: Path) -> Path:
    """What lmms-eval 0.7.3 writes with --output_path, cut to what is read."""
    config = {
        "dataset_path": "lmms-lab-encoder/POPE",
        "test_split": "test",
        "generation_kwargs": {"max_new_tokens": 128, "do_sample": False},
    }
    scores = {
        "alias": 10**400,  # mutated once: whatever is no score is passed over
        "pope_accuracy,none": 0.875,
        "pope_accuracy_stderr,none": "N/A",
        "pope_yes_ratio_stderr,none": 0.1,
        "mme_perception_score,none": 1200.5,
    }
    content = {
        "results": {"pope": scores},
        "configs": {"pope": config},
        "n-samples": {"pope": {"original": 9000, "effective": 8}},
        "lmms_eval_version": "0.7.3",
        "total_evaluation_time_seconds": "12.5",
    }
    path.write_text(json.dumps(content))
    return path


def test_lmms_evals_results_become_result_files(tmp_path, capsys, monkeypatch):
    source = lmms_eval_file(tmp_path / "x_results.json")
    command = ["results", "--lmms-eval", str(source), "--output", str(tmp_path)]
    assert main([*command, "--hardware", "one GPU", "--json"]) == 0
    (result,) = load_results(tmp_path)
    assert result.metrics == {"pope_accuracy": 87.5, "mme_perception_score": 1200.5}
    assert result.dataset == {"name": "pope", "id": "lmms-lab-encoder/POPE", "split": "test"}
    assert (result.num_examples, result.seconds, result.hardware) == (8, 12.5, "one GPU")
    assert result.harness == {"name": "lmms-eval", "version": "0.7.3"}
    assert main(command) == 2
    assert "--hardware" in capsys.readouterr().err
    source.write_text(source.read_text().replace('"0.7.3"', '"unknown@unknown"'))
    monkeypatch.setattr(importlib.metadata, "version", lambda package: f"installed {package}")
    assert main([*command, "--hardware", "x"]) == 0
    assert load_results(tmp_path)[0].harness["version"] == "installed lmms-eval"
    source.write_text(source.read_text().replace('"unknown@unknown"', '["0.7.3"]'))
    assert main([*command, "--hardware", "x"]) == 2
    assert "lmms_eval_version must be str, got a list" in capsys.readouterr().err
    source.write_text(lmms_eval_file(source).read_text().replace('"12.5"', "9" * 400))
    assert main([*command, "--hardware", "x"]) == 2
    assert "x_results.json: int too large to convert to float" in capsys.readouterr().err
    source.write_text('{"results": {}}')
    assert main([*command, "--hardware", "x"]) == 2
    assert "not a results file of lmms-eval" in capsys.readouterr().err
    source.write_text('{"results": {"pope": "x"}, "configs": {"pope": {}}}')
    assert main([*command, "--hardware", "x"]) == 2
    assert "configs and results of 'pope' must be objects" in capsys.readouterr().err


def test_the_task_asks_as_our_own_does():
    from being_vl.evaluation.tasks import load_task

    text = (TASKS_FOLDER / "easyvqa.yaml").read_text().replace("!function ", "")
    config = yaml.safe_load(text)
    assert config["generation_kwargs"]["max_new_tokens"] == load_task("easyvqa").max_new_tokens
    for name in ("class", "doc_to_visual", "process_results"):
        module, _, function = config[name].rpartition(".")
        assert f" {function}" in (ROOT / (module.replace(".", "/") + ".py")).read_text()


@pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None,
    reason="lmms-eval is not installed: pip install being-vl[eval]",
)
def test_lmms_eval_and_our_own_command_agree(tmp_path):
    """A process each: lmms-eval takes 14 seconds to import, and what it changes stays there."""
    save_checkpoint(*tiny_checkpoint(), tmp_path / "checkpoint")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BEING_VL_CACHE": str(tmp_path / "cache")}
    script = (
        "import json, sys\n"
        "from lmms_eval.evaluator import simple_evaluate\n"
        "from lmms_eval.models import MODEL_REGISTRY_V2\n"
        "from lmms_eval.tasks import TaskManager\n"
        "from being_vl.evaluation.lmms_eval import TASKS_FOLDER, manifest\n"
        "MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)  # also where being_vl is not installed\n"
        "manager = TaskManager(include_path=str(TASKS_FOLDER), include_defaults=False)\n"
        "results = simple_evaluate('being_vl', 'pretrained=' + sys.argv[1], tasks=['easyvqa'], batch_size=8, limit=20,\n"
        "    device='cpu', task_manager=manager, log_samples=True)\n"
        "answers = {s['doc']['question_id']: s['filtered_resps'][0] for s in results['samples']['easyvqa']}\n"
        "json.dump([results['results']['easyvqa'], answers], open(sys.argv[2], 'w'))\n"
    )
    theirs = tmp_path / "theirs.json"
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "checkpoint"), str(theirs)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    command = "eval checkpoint --tasks easyvqa --limit 20 --device cpu"
    subprocess.run(
        [sys.executable, "-m", "being_vl", *command.split()],
        env=environment,
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    scores, answers = json.loads(theirs.read_text())
    ours = json.loads((tmp_path / "checkpoint/evaluation/easyvqa.json").read_text())
    lines = (tmp_path / "checkpoint/evaluation/easyvqa.answers.jsonl").read_text().splitlines()
    assert answers == {row["id"]: row["answer"].strip() for row in map(json.loads, lines)}
    assert 100 * scores["accuracy,none"] == pytest.approx(ours["metrics"]["accuracy"])
