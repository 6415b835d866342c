"""What goes of a folder, what stays, and which folders are refused; cards say what files say."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import EvalResultEntry, ModelCard, ModelCardData
from huggingface_hub._eval_results import parse_eval_result_entries
from PIL import Image
from publish_fixtures import RESULT, published_checkpoint, write_result
from quantizer_fixtures import make
from stand_in.validation import card_errors
from transformers import AutoModel, AutoModelForCausalLM
from video_fixtures import video_checkpoint

from being_vl import BeingVLProcessor
from being_vl.cli import main
from being_vl.codes.shards import ShardInfo, write_shard
from being_vl.files import Result
from being_vl.hub.card import card_text, write_card
from being_vl.hub.checkpoint import save_checkpoint
from being_vl.hub.commit import folder_files, matches, replaced
from being_vl.hub.facts import CardFacts, read_facts
from being_vl.hub.folder import check_whole, folder_kind, planned
from being_vl.hub.measured import load_results
from being_vl.quantizers.modeling_being_vl_adapted_vq import adapt


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return published_checkpoint(tmp_path_factory.mktemp("original") / "checkpoint", shard="50KB")


@pytest.fixture
def checkpoint(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "checkpoint"))


def test_patterns_do_not_cross_folders() -> None:
    assert matches("model-00001-of-00002.safetensors", ["*.safetensors"])
    assert not matches("checkpoint-10/model.safetensors", ["*.safetensors"])
    assert matches("vq_model/model.safetensors", ["vq_model/*.safetensors"])


def test_a_whole_checkpoint_passes(checkpoint: Path) -> None:
    assert len(list(checkpoint.glob("model-*.safetensors"))) > 1
    assert folder_kind(checkpoint) == "checkpoint"
    check_whole(checkpoint)


def test_a_checkpoint_with_a_repeat_code_passes(tmp_path: Path) -> None:
    """Its vocabulary has one code more than its quantizer."""
    save_checkpoint(*video_checkpoint(), tmp_path / "videos")
    with planned(tmp_path / "videos") as plan:
        assert "model.safetensors" in plan.files
    path = tmp_path / "videos" / "vq_model" / "config.json"
    change(path, num_embeddings=json.loads(path.read_text())["num_embeddings"] + 1)
    with pytest.raises(ValueError, match="num_embeddings is"):
        check_whole(tmp_path / "videos")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def change(path: Path, **fields) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


BROKEN = {
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer\.json missing"),
    "no VQ model": (lambda f: shutil.rmtree(f / "vq_model"), r"vq_model/config\.json missing"),
    "no VQ weights": (
        lambda f: (f / "vq_model/model.safetensors").unlink(),
        r"vq_model: model\.safetensors is missing",
    ),
    "a shard missing": (
        lambda f: min(f.glob("model-*.safetensors")).unlink(),
        r"model-00001-of-\d+\.safetensors is missing",
    ),
    "a shard cut": (lambda f: cut(min(f.glob("model-*"))), "damaged or cut"),
    "other merges": (
        lambda f: change(f / "image_bpe.json", merges=[]),
        r"image_bpe\.json: the number of merges is 0, but config\.json says 12",
    ),
    "another codebook": (
        lambda f: change(f / "vq_model/config.json", num_embeddings=8),
        r"num_embeddings is 8, but config\.json says 16",
    ),
    "another vocabulary": (
        lambda f: change(f / "config.json", text_vocab_size=410, vocab_size=442),
        r"number of ids is 437, but config\.json says 442",
    ),
    "another model": (
        lambda f: change(f / "config.json", model_type="llama"),
        "model_type is 'llama'",
    ),
    "no configuration": (
        lambda f: (f / "config.json").unlink(),
        "parts of a checkpoint but no config.json",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_half_a_checkpoint_is_refused(checkpoint: Path, name: str, capsys) -> None:
    breaks, message = BROKEN[name]
    breaks(checkpoint)
    with pytest.raises(ValueError, match=message):
        check_whole(checkpoint)
    assert main(["push", str(checkpoint), "a/b", "--dry-run"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"holds no checkpoint \(config\.json\)"):
        check_whole(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        check_whole(tmp_path / "none")


def test_an_adapted_quantizer_goes_too(tmp_path: Path, capsys) -> None:
    adapt(make("chameleon")).save_pretrained(tmp_path)
    assert check_whole(tmp_path) == "vq_model"
    assert main(["push", str(tmp_path), "a/b", "--dry-run"]) == 0
    assert "model.safetensors" in capsys.readouterr().out


def test_what_goes_and_what_stays(checkpoint: Path, capsys) -> None:
    (checkpoint / "checkpoint-10").mkdir()
    for name in ("checkpoint-10/model.safetensors", "optimizer.pt", "train.yaml", ".env"):
        (checkpoint / name).write_text("x: 1\n")
    before = sorted(checkpoint.rglob("*"))
    command = ["push", str(checkpoint), "a/b", "--dry-run", "--json", "--include", "*.yaml"]
    assert main(command) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["left_out"] == [".env", "checkpoint-10/model.safetensors", "optimizer.pt"]
    assert {"README.md", ".eval_results/easyvqa.yaml", "train.yaml"} <= set(answer["files"])
    assert answer["bytes"] == sum(answer["files"].values()) and "url" not in answer
    assert sorted(checkpoint.rglob("*")) == before  # the card was made elsewhere
    with (
        pytest.raises(ValueError, match=r"--include \*\.doc: no such file"),
        planned(checkpoint, ["*.doc"]),
    ):
        pass


def test_results_newer_than_the_card_are_named(checkpoint: Path, capsys) -> None:
    write_card(checkpoint)
    later = (checkpoint / "README.md").stat().st_mtime + 10
    path = write_result(checkpoint)
    os.utime(path, (later, later))
    assert main(["push", str(checkpoint), "a/b", "--dry-run"]) == 0
    assert "evaluation/easyvqa.json is newer than README.md" in capsys.readouterr().err


def test_card_says_what_the_files_say(checkpoint: Path, capsys) -> None:
    image = str(checkpoint.parent / "image.png")
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(image)
    (checkpoint / "train.yaml").write_text(
        "data: /home/me/data\ntraining: {learning_rate: 0.002, seed: 3}\n"
    )
    options = {
        "title": "Seeing Llama", "license": "apache-2.0", "base_model": "tester/llama", "language": "[en]",
        "datasets": "[tester/easy-vqa]", "limits": "It sees little.", "vq_source": "Trained here.",
        "hardware": "two cores", "question": 'Is it "red"?',
    }  # fmt: skip
    flags = [
        part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)
    ]
    assert main(["card", str(checkpoint), "--image", image, "--json", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == [
        "example.png", "tokens.png", "card.yaml", "README.md", ".eval_results/easyvqa.yaml",
    ]  # fmt: skip
    card = ModelCard.load(checkpoint / "README.md")
    assert isinstance(card.data, ModelCardData)
    data = card.data
    assert data.pipeline_tag == "image-text-to-text" and data.library_name == "being_vl"
    assert card.data.base_model == "tester/llama" and card.data.metrics == ["accuracy"]
    assert [(r.metric_name, r.metric_value, r.dataset_split) for r in card.data.eval_results] == [
        ("accuracy", 99.28, "test"),
        ("accuracy, yes/no", 99.4, "test"),
    ]
    text = card.content
    for said in (
        "# Seeing Llama", "| easyvqa | easy-VQA, test | accuracy | 99.28 | 9,673 | greedy, max_new_tokens=8 | being_vl 0.1.0 |",
        "| easy-VQA, test | 16 | 5.5 | 2.9 |", "](tokens.png)", "It sees little.", "Trained here.", "two cores",
        "| learning_rate | 0.002 |", "405 text, 4 special, 16 codes, 12 merges", "<image>Is it \"red\"?",
    ):  # fmt: skip
        assert said in text, said
    assert "/home/me" not in text and "None" not in text
    assert card_errors(text, "model") == []
    entries = parse_eval_result_entries(
        yaml.safe_load((checkpoint / ".eval_results/easyvqa.yaml").read_text())
    )
    assert entries == [
        EvalResultEntry(
            dataset_id="tester/easy-vqa",
            task_id="easyvqa",
            value=99.28,
            notes="accuracy; greedy, max_new_tokens=8; being_vl 0.1.0; 9673 examples",
        )
    ]
    # Again, without options: card.yaml has them.
    assert main(["card", str(checkpoint)]) == 0
    assert ModelCard.load(checkpoint / "README.md").content == text


@pytest.mark.parametrize("name", ["user/naïve/x", "user/naïve", "a b", "a--b", ".a", "a.git", "x" * 97, ""])  # fmt: skip
def test_a_name_that_the_hub_refuses_is_refused_at_once(
    checkpoint: Path, name: str, capsys
) -> None:
    assert main(["push", str(checkpoint), name, "--dry-run"]) == 2
    printed = capsys.readouterr()
    assert repr(name) in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_what_is_not_known_is_left_out(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "evaluation")
    text = card_text(checkpoint)
    for heading in (
        "## Evaluation",
        "## Training",
        "## Limits",
        "## Tokens an image",
        "license",
        "model-index",
    ):
        assert heading not in text, heading
    assert "None" not in text and card_errors(text, "model") == []


def test_results_without_a_data_set_on_the_hub_are_in_the_card_alone(checkpoint: Path) -> None:
    write_card(checkpoint)
    assert (checkpoint / ".eval_results/easyvqa.yaml").exists()
    write_result(checkpoint, dataset={"name": "easy-VQA", "id": None, "split": "test"})
    write_card(checkpoint)
    assert not (checkpoint / ".eval_results/easyvqa.yaml").exists()
    assert "type: easy-vqa" in (checkpoint / "README.md").read_text()
    write_card(checkpoint, CardFacts(dataset_ids={"easyvqa": "somebody/easy-vqa"}))
    assert "somebody/easy-vqa" in (checkpoint / ".eval_results/easyvqa.yaml").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "with version: 1"),
        ({"metrics": {"accuracy": "99"}}, r"metrics\.accuracy must be float, got '99'"),
        ({"dataset": {"id": "a/b"}}, r"dataset\.name must be str, got None"),
        ({"dataset": {"name": "a", "id": {}}}, r"dataset\.id must be str \| None, got a dict"),
        ({"images": {"tokens_per_image": 1.0}}, "images must have codes_per_image and tokens_per"),
        ({"images": [1]}, r"images must be dict\[str, float\], got a list"),
        ({"metrics": {"accuracy": 10**400}}, r"metrics\.accuracy must be float, got 1000"),
        ({"seconds": 10**400}, "seconds must be float, got 1000"),
        ({"num_examples": "many"}, "num_examples must be int, got 'many'"),
        ({"harness": {"name": "x"}}, r"harness\.version must be str"),
    ],
)
def test_malformed_results(tmp_path: Path, changes: dict, message: str) -> None:
    path = write_result(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        load_results(tmp_path)
    assert str(path) in str(error.value)


def test_results_without_numbers_are_left_out(tmp_path: Path) -> None:
    write_result(tmp_path, metrics={})
    assert load_results(tmp_path) == []
    write_result(tmp_path)
    assert load_results(tmp_path)[0].metrics == RESULT["metrics"]


def test_facts_are_read_with_suspicion(tmp_path: Path) -> None:
    facts = CardFacts(title="A", datasets=["a/b"], tokens_per_image=2.5, sections={"Note": "b"})
    (tmp_path / "card.yaml").write_text(facts.to_yaml())
    assert read_facts(tmp_path) == facts
    assert facts.updated({"title": None, "license": "mit"}).title == "A"
    for text, message in (
        ("- a", "must be a mapping"),
        ("licence: mit", "unknown field 'licence'"),
        ("datasets: a/b", "datasets must be list"),
        ("max_new_tokens: many", "max_new_tokens must be int"),
        ("a: [", "not YAML"),
    ):
        (tmp_path / "card.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_facts(tmp_path)


def test_card_of_codes(tmp_path: Path) -> None:
    grids = [np.zeros((2, 3), int), np.ones((4, 4), int)]
    write_shard(tmp_path / "codes-00000-00000.parquet", ["a", "b"], grids, ShardInfo(4, "vq"))
    (tmp_path / "encode.yaml").write_text("images: /home/me\n")
    with planned(tmp_path) as plan:
        assert plan.repo_type == "dataset"
        assert set(plan.files) == {"README.md", "codes-00000-00000.parquet"}
        text = plan.files["README.md"].read_text()
    assert "| codes | 22, of a codebook of 4 |" in text and "2 × 3, 4 × 4" in text
    assert card_errors(text, "dataset") == []


def test_the_validator_sees_what_is_wrong() -> None:
    def errors(**fields) -> list[str]:
        return card_errors(f"---\n{yaml.safe_dump(fields)}---\n# A card\n", "model")

    assert errors(license="mit", tags=["a"], language=["en"]) == []
    assert errors(license="my own")
    assert errors(pipeline_tag="seeing")
    assert errors(base_model="a b")
    assert errors(**{"model-index": [{"name": "a", "results": [{"task": {}}]}]})
    assert card_errors("---\na: [\n---\n", "model")


def test_names_in_results_do_not_become_paths(tmp_path: Path) -> None:
    for task in ("../../card", "a/b", "/etc/x", ".hidden", "a\\b", "", "x" * 300):
        write_result(tmp_path, task=task)
        with pytest.raises(ValueError, match="task must be easyvqa, as the file's name says"):
            load_results(tmp_path)
        result = Result(
            **{name: value for name, value in {**RESULT, "task": task}.items() if name != "version"}
        )
        with pytest.raises(ValueError, match="task must begin with a letter or digit"):
            result.save(tmp_path)


def test_links_out_of_the_folder_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "model.safetensors").write_bytes(b"secret")
    (secret / "easyvqa.yaml").write_text("secret")
    inside = checkpoint / "LICENSE"
    (checkpoint / "licence.txt").write_text("MIT")
    inside.symlink_to("licence.txt")
    with planned(checkpoint) as plan:
        assert "LICENSE" in plan.files
    (checkpoint / "extra.safetensors").symlink_to(secret / "model.safetensors")
    with (
        pytest.raises(ValueError, match=r"extra\.safetensors is a link to .*outside of the folder"),
        planned(checkpoint),
    ):
        pass
    (checkpoint / "extra.safetensors").unlink()
    shutil.move(checkpoint / "vq_model", secret / "vq_model")
    (checkpoint / "vq_model").symlink_to(secret / "vq_model")
    with pytest.raises(ValueError, match="outside of the folder"), planned(checkpoint):
        pass
    (checkpoint / ".eval_results").symlink_to(secret)
    with pytest.raises(ValueError, match=r"\.eval_results is a link to a place outside"):
        write_card(checkpoint)
    assert (secret / "easyvqa.yaml").read_text() == "secret"


def test_a_snapshot_of_the_cache_is_a_folder(checkpoint: Path, tmp_path: Path) -> None:
    """The Hub's cache holds links to blobs beside the snapshots; they belong to it."""
    snapshot = tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(path for path in checkpoint.rglob("*") if path.is_file()):
        shutil.copy(path, blobs / str(number))
        link = snapshot / path.relative_to(checkpoint)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / str(number))
    assert set(folder_files(snapshot)) == set(folder_files(checkpoint))


def test_what_files_say_is_no_structure(checkpoint: Path) -> None:
    evil = "<script>x</script> | [a](javascript:b) `c` ![d](e)\n# f\n```"
    write_result(
        checkpoint,
        hardware=evil,
        metrics={evil: 1.0},
        dataset={"name": evil, "split": evil},
        harness={"name": evil, "version": "1"},
        decoding={"stop": evil},
    )
    (checkpoint / "training.json").write_text(json.dumps({"optim": evil}))
    facts = CardFacts(title=evil, citation=f"@x{{y}}\n{evil}\n{evil}", base_model=evil)
    text = card_text(checkpoint, facts)
    body = text.split("---\n", 2)[2]
    assert body.count("\n```") == card_text(checkpoint, CardFacts()).count("\n```")
    body = re.sub(r"```bibtex.*?\n```", "", body, flags=re.DOTALL)
    assert "<script>" not in body and "[a](" not in body and "&lt;script&gt;" in body
    assert "# f" not in {line.strip() for line in body.splitlines()}
    row = next(line for line in body.splitlines() if line.startswith("| easyvqa"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 8
    (error,) = card_errors(text, "model")  # the Hub refuses such metadata
    assert error.startswith("base_model: ")


@pytest.mark.parametrize("folder", [".", "vq_model"])
def test_a_save_with_fewer_files_leaves_no_index(checkpoint: Path, folder: str) -> None:
    """And one with more files leaves no single file, which transformers would go on loading."""
    auto = AutoModel if folder == "vq_model" else AutoModelForCausalLM
    model = auto.from_pretrained(checkpoint / folder)
    place = checkpoint / folder
    for size, single in (
        ("50KB" if folder == "." else "100B", False),
        ("5GB", True),
        ("50KB", False),
    ):
        if folder == "vq_model" and not single:
            continue  # one tensor makes one file
        model.save_pretrained(place, max_shard_size=size)
        assert (place / "model.safetensors").exists() == single
        assert (place / "model.safetensors.index.json").exists() != single
        check_whole(checkpoint)


def test_what_an_older_save_left_stays_at_home(checkpoint: Path) -> None:
    """transformers, which loads the single file, leaves the index of an earlier save."""
    whole = AutoModelForCausalLM.from_pretrained(checkpoint)
    index = (checkpoint / "model.safetensors.index.json").read_bytes()
    whole.save_pretrained(checkpoint)
    (checkpoint / "model.safetensors.index.json").write_bytes(index)
    check_whole(checkpoint)
    with planned(checkpoint) as plan:
        assert [name for name in plan.files if name.startswith("model")] == ["model.safetensors"]


def test_variants_stand_side_by_side(checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model.half().save_pretrained(checkpoint, variant="fp16", max_shard_size="50KB")
    check_whole(checkpoint)
    with planned(checkpoint) as plan:
        assert "model.safetensors.index.json" in plan.files
        assert "model.safetensors.index.fp16.json" in plan.files
        assert any(name.startswith("model.fp16-00001-of-") for name in plan.files)
    next(iter(checkpoint.glob("model.fp16-00001*"))).unlink()
    with pytest.raises(ValueError, match=r"model\.fp16-00001-of-\d+\.safetensors is missing"):
        check_whole(checkpoint)


def test_a_commit_replaces_the_weights_of_its_variant() -> None:
    there = {
        "model.safetensors",
        "model.fp16.safetensors",
        "README.md",
        "evaluation/a.json",
        "x.py",
    }
    stored = {"model.safetensors": "1", "model.fp16.safetensors": "2"}
    assert replaced({"model.fp16.safetensors": "2"}, stored, there) == set()
    assert replaced({"model.fp16.safetensors": "3"}, stored, there) == {"model.fp16.safetensors"}
    assert replaced({"model.bf16.safetensors": "3"}, stored, there) == set()
    main = {"model.safetensors", "README.md", "evaluation/a.json"}
    assert replaced({"model.safetensors": "4"}, stored, there) == main
    assert replaced({}, stored, there) == set()


def test_a_relative_path_means_the_folder_at_load_time(checkpoint: Path, monkeypatch) -> None:
    """What is loaded or pushed later comes from there, whatever the working directory is by then."""
    monkeypatch.chdir(checkpoint.parent)
    processor = BeingVLProcessor.from_pretrained("checkpoint")
    parts = (
        processor,
        processor.tokenizer,
        processor.image_processor,
        processor.tokenizer.image_bpe,
    )
    monkeypatch.chdir("/")
    assert processor.quantize(Image.new("RGB", (16, 16)))[0].ndim == 2
    for part in parts:
        assert part._checkpoint_source()[0] == str(checkpoint)
