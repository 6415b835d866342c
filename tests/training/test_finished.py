"""Whether a run has finished is judged by its content: model, data, settings, and the files that it made."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import yaml
from safetensors.torch import load_file, save_file
from training_fixtures import arguments, checkpoint_folder, tokenized

from being_vl.cli import main
from being_vl.training.run import run_stage


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "checkpoint"
    _, processor = checkpoint_folder(folder)
    return folder, processor


@pytest.fixture(scope="module")
def finished(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    data = tokenized(start[1])
    run_stage(*arguments(start[0], folder, max_steps=2), train_dataset=data)
    return folder, data


@pytest.fixture
def run(start, finished, tmp_path):
    """A copy of the finished run, and how it is started again."""
    shutil.copytree(finished[0], tmp_path / "run")

    def again(data=None, base=None, **options):
        given = arguments(base or start[0], tmp_path / "run", **{"max_steps": 2, **options})
        return run_stage(*given, train_dataset=finished[1] if data is None else data)

    return tmp_path / "run", again


def test_the_same_run_has_nothing_to_do(run):
    folder, again = run
    before = (folder / "model.safetensors").stat().st_mtime_ns
    result = again(logging_steps=7)
    assert result.finished_before and result.metrics["steps"] == 2
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_other_data_of_the_same_name_is_another_run(run, start):
    with pytest.raises(
        ValueError, match=r"another run has finished here: data\.(samples|digest) is"
    ):
        run[1](data=tokenized(start[1], seed=1))


def test_another_base_of_the_same_name_is_another_run(run, start, tmp_path):
    moved = tmp_path / "start"
    shutil.copytree(start[0], moved)
    weights = load_file(moved / "model.safetensors")
    save_file({n: w + 1 for n, w in weights.items()}, moved / "model.safetensors", {"format": "pt"})
    settings = yaml.safe_load((run[0] / "train.yaml").read_text())
    name = next(key for key, value in settings.items() if value == str(start[0]))
    (run[0] / "train.yaml").write_text(yaml.safe_dump({**settings, name: str(moved)}))
    with pytest.raises(
        ValueError, match=r"another run has finished here: model\.initial_weights is"
    ):
        run[1](base=moved)


@pytest.mark.parametrize("damage", ["deleted", "truncated", "one bit"])
def test_a_damaged_product_is_made_again(run, damage):
    folder, again = run
    weights = folder / "model.safetensors"
    wanted = weights.read_bytes()
    if damage == "deleted":
        weights.unlink()
    elif damage == "truncated":
        os.truncate(weights, 1000)
    else:
        changed = bytearray(wanted)
        changed[-10] ^= 1
        weights.write_bytes(changed)
    with pytest.warns(
        UserWarning,
        match=r"had finished, but model weights \(model.safetensors\) .*training goes on",
    ):
        result = again()
    assert not result.finished_before
    assert weights.read_bytes() == wanted


@pytest.mark.parametrize("text", ["{}", "[]", '{"run": 1}', "{"])
def test_an_empty_record_is_no_finished_run(run, text):
    (run[0] / "finished.json").write_text(text)
    with pytest.raises(ValueError, match=r"finished\.json: "):
        run[1]()


def test_metrics_that_are_no_numbers_are_named(run):
    path = run[0] / "finished.json"
    content = json.loads(path.read_text())
    content["metrics"]["train_loss"] = "low"
    path.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"finished\.json: metrics\.train_loss must be a number, got 'low'"
    ):
        run[1]()


def test_a_link_to_itself_is_a_damaged_product(run):
    path = run[0] / "config.json"
    path.unlink()
    path.symlink_to(path)
    with pytest.warns(UserWarning, match="had finished, but .*training goes on"):
        assert not run[1]().finished_before
    assert not path.is_symlink()


@pytest.mark.parametrize("text", ["", "[1]", "a: [", "\t"])
def test_settings_that_cannot_be_read_are_one_error(run, text):
    (run[0] / "train.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"train\.yaml: "):
        run[1]()


def test_metrics_alone_finish_nothing(run):
    (run[0] / "finished.json").unlink()
    (run[0] / "metrics.json").write_text("{}")
    result = run[1]()
    assert not result.finished_before and result.metrics["steps"] == 2
    assert json.loads((run[0] / "metrics.json").read_text())["steps"] == 2


# ---- what may change when a run goes on


def test_what_decides_nothing_may_change(run):
    """Memory is spared, and fields of another version of transformers are passed over."""
    settings = yaml.safe_load((run[0] / "train.yaml").read_text())
    settings["a_field_of_tomorrow"] = 3
    del settings["dataloader_num_workers"]
    (run[0] / "train.yaml").write_text(yaml.safe_dump(settings))
    assert run[1](gradient_checkpointing=True, per_device_eval_batch_size=1).finished_before


@pytest.mark.parametrize(
    "option", [{"learning_rate": 0.5}, {"seed": 7}, {"stage": {"stage": "pretrain"}}]
)
def test_what_decides_the_weights_may_not(run, option):
    with pytest.raises(
        ValueError, match=r"train\.yaml: (learning_rate|seed|stage) is .*, but this run's is"
    ):
        run[1](**option)


def test_the_command_says_so(run, start, finished, tmp_path, capsys):
    from training_fixtures import tokenized_folder

    tokenized_folder(tmp_path / "rows", finished[1], start[1])
    names = yaml.safe_load((run[0] / "train.yaml").read_text())
    base = next(key for key, value in names.items() if value == str(start[0]))
    data = next(key for key, value in names.items() if value == "given")
    options = {base: str(start[0]), data: str(tmp_path / "rows"), "output_dir": str(tmp_path / "new"),
               "max_steps": 1, "use_cpu": True, "save_strategy": "no"}  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(options))
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 0
    assert "nothing to do" not in capsys.readouterr().err
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 0
    assert "finished before; nothing to do" in capsys.readouterr().err


def test_a_model_of_another_vocabulary_than_its_tokenizer_is_refused(start, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(start[0], folder)
    config = json.loads((folder / "config.json").read_text())
    config["num_merges"] -= 1
    config["codebook_size"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"made with another vocabulary: codebook_size is 16, here it is 17"
    ):
        run_stage(*arguments(folder, tmp_path / "out"), train_dataset=tokenized(start[1]))
