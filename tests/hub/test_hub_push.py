"""Pushed to the stand-in Hub through the real huggingface_hub, and loaded from there in a new process."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from publish_fixtures import published_checkpoint
from stand_in.server import HubServer
from stand_in.storage import read_folder

from being_vl.codes.shards import CodeShards, ShardInfo, write_shard
from being_vl.hub.card import write_card
from being_vl.hub.commit import matches
from being_vl.hub.example import draw_example
from being_vl.hub.facts import CardFacts

_ROOT = Path(__file__).parents[2]
PARTS = ("model", "tokenizer", "processor", "image_processor", "vq_model", "image_bpe", "saved")

BEHAVIOUR = """
import hashlib, json, sys
import being_vl, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

def behaviour(source, image):
    processor = AutoProcessor.from_pretrained(source)
    model = AutoModelForImageTextToText.from_pretrained(source).eval()
    content = [{"type": "image", "path": image}, {"type": "text", "text": "What is it?"}]
    batch = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True,
                                          add_generation_prompt=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
    codes = processor.quantize([Image.open(image)])[0]
    picture = processor.decode_image(processor.tokenizer.encode_codes([codes])[0])
    drawn = model.generate(**batch, generation_mode="image", do_sample=False)
    drawn = processor.post_process_multimodal_output(drawn, generation_mode="image")[0]
    digest = lambda data: hashlib.sha256(data).hexdigest()
    return [batch["input_ids"].tolist(), digest(logits.numpy().tobytes()), codes.tolist(),
            digest(picture.tobytes()), digest(drawn.tobytes())]
"""

PUSH = """
import being_vl, torch
from huggingface_hub import ModelCard, DatasetCard
from transformers import AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer
from being_vl import ImageBPE
from being_vl.cli import main

assert main(["push", "checkpoint", "tester/whole"]) == 0
assert main(["push", "codes", "tester/codes"]) == 0
assert main(["push", "checkpoint", "tester/secret", "--private", "--revision", "v1"]) == 0
model = AutoModelForCausalLM.from_pretrained("checkpoint")
AutoTokenizer.from_pretrained("checkpoint").push_to_hub("tester/tokenizer")
processor = AutoProcessor.from_pretrained("checkpoint")
processor.push_to_hub("tester/processor")
AutoImageProcessor.from_pretrained("checkpoint").push_to_hub("tester/image_processor")
AutoModel.from_pretrained("checkpoint", subfolder="vq_model").push_to_hub("tester/vq_model")
ImageBPE.from_pretrained("checkpoint").push_to_hub("tester/image_bpe")
model.push_to_hub("tester/model")
model.push_to_hub("tester/model", tags=["seen"])
model.save_pretrained("again", push_to_hub=True, repo_id="tester/saved")
# Parts that stand alone.
AutoModel.from_pretrained("checkpoint/vq_model").push_to_hub("tester/only-vq")
ImageBPE(ImageBPE.from_pretrained("checkpoint").merges, 16).push_to_hub("tester/only-bpe")
# Other weights: what was measured is not theirs, whichever order the parts are pushed in.
processor.push_to_hub("tester/trained")
with torch.no_grad():
    model.lm_head.weight.add_(1.0)
model.push_to_hub("tester/trained")
processor.push_to_hub("tester/trained")
for name in ("whole", "trained", "only-vq", "only-bpe"):
    ModelCard.load(f"tester/{name}").validate()
DatasetCard.load("tester/codes").validate()
print("done")
"""

LOAD = """
from datasets import load_dataset
from huggingface_hub import ModelCard, snapshot_download
from being_vl import ImageBPE

seen = {"whole": behaviour("tester/whole", sys.argv[1]), "model": behaviour("tester/model", sys.argv[1])}
seen["snapshot"] = snapshot_download("tester/whole")
seen["bpe"] = ImageBPE.from_pretrained("tester/only-bpe").num_merges
rows = load_dataset("tester/codes", split="train")
seen["codes"] = [[row["image_id"], row["height"], row["width"], row["codes"]] for row in rows]
seen["codes_type"] = str(rows.features["codes"].feature.dtype)
snippet = ModelCard.load("tester/whole").content.split("```python\\n")[1].split("```")[0]
assert 'checkpoint = "tester/whole"' in snippet
exec(snippet)
print(json.dumps(seen))
"""


def run(code: str, folder: Path, environment: dict[str, str], *args: str) -> str:
    env = {**os.environ, **environment, "PYTHONPATH": str(_ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint with its card, and a folder of codes."""
    folder = tmp_path_factory.mktemp("push")
    checkpoint = published_checkpoint(folder / "checkpoint")
    draw_example(checkpoint, folder / "image.png")
    write_card(checkpoint, CardFacts(title="Tiny", license="apache-2.0", language=["en"]))
    (checkpoint / "checkpoint-10").mkdir()
    (checkpoint / "checkpoint-10" / "optimizer.pt").write_bytes(b"x")
    (checkpoint / "train.yaml").write_text("output: /home/me/run\n")
    (folder / "codes").mkdir()
    rng = np.random.default_rng(0)
    grids = [rng.integers(0, 16, (4, 4 + i % 2)) for i in range(5)]
    names = [f"{i}.png" for i in range(5)]
    write_shard(folder / "codes/codes-00000-00000.parquet", names, grids, ShardInfo(16, "abc"))
    return folder


@pytest.fixture(scope="module")
def hub(folder: Path):
    """The stand-in after everything was pushed."""
    with HubServer() as hub:
        assert run(PUSH, folder, hub.environment(folder / "push_home")) == "done"
        yield hub


@pytest.fixture(scope="module")
def seen(folder: Path, hub: HubServer) -> dict:
    """What another process, with an empty cache, sees of it."""
    home = hub.environment(folder / "load_home")
    return json.loads(run(BEHAVIOUR + LOAD, folder, home, str(folder / "image.png")))


@pytest.mark.parametrize("part", PARTS)
def test_whichever_call_carries_everything(hub: HubServer, folder: Path, part: str) -> None:
    want = {
        path
        for path in read_folder(folder / "checkpoint")
        if not matches(path, ["train.yaml", "*/*.pt"])
    }
    got = hub.files(f"tester/{part}")
    assert want <= set(got) and not {"train.yaml", "checkpoint-10/optimizer.pt"} & set(got)
    for name in (
        "model.safetensors",
        "image_bpe.json",
        "vq_model/model.safetensors",
        "evaluation/easyvqa.json",
    ):
        assert got[name] == (folder / "checkpoint" / name).read_bytes(), name
    commits = 3 if part == "model" else 2  # the first one is the Hub's
    assert len(hub.repositories["model", f"tester/{part}"].commits) == commits


def test_tags_join_the_card(hub: HubServer) -> None:
    before, after = (
        ModelCard(files["README.md"].decode())
        for files in list(hub.repositories["model", "tester/model"].commits.values())[1:]
    )
    assert after.data.tags == [*before.data.tags, "seen"]
    assert after.text.strip() == before.text.strip()


def test_push_sends_the_folder(hub: HubServer, folder: Path, seen: dict) -> None:
    left_out = ["train.yaml", "*/*.pt"]
    want = {n: c for n, c in read_folder(folder / "checkpoint").items() if not matches(n, left_out)}
    card = want.pop("README.md").decode()
    got = hub.files("tester/whole")
    assert got.pop("README.md").decode() == card.replace('"."', '"tester/whole"')
    assert got == want
    downloaded = read_folder(seen["snapshot"])
    assert {name: hashlib.sha256(content).digest() for name, content in downloaded.items()} == {
        name: hashlib.sha256(content).digest()
        for name, content in hub.files("tester/whole").items()
    }


def test_private_and_branches(hub: HubServer) -> None:
    assert hub.repositories["model", "tester/secret"].private
    assert not hub.repositories["model", "tester/whole"].private
    assert hub.files("tester/secret") == {}
    assert "model.safetensors" in hub.files("tester/secret", revision="v1")


def test_ids_logits_and_images_are_bit_equal(folder: Path, seen: dict) -> None:
    scope: dict = {}
    exec(BEHAVIOUR, scope)
    here = scope["behaviour"](str(folder / "checkpoint"), str(folder / "image.png"))
    assert seen["whole"] == here
    assert seen["model"] == here


def test_codes_are_a_data_set(folder: Path, hub: HubServer, seen: dict) -> None:
    shards = CodeShards(folder / "codes")
    assert [row[1:3] for row in seen["codes"]] == [list(grid.shape) for grid in shards]
    assert [row[3] for row in seen["codes"]] == [grid.reshape(-1).tolist() for grid in shards]
    assert seen["codes_type"] == "int16"
    card = hub.files("tester/codes", "dataset")["README.md"].decode()
    assert "| images | 5 |" in card and 'checkpoint = "tester/codes"' in card and "`abc`" in card


def test_results_stay_with_their_weights(hub: HubServer, folder: Path) -> None:
    files = hub.files("tester/trained")
    assert files["model.safetensors"] != (folder / "checkpoint/model.safetensors").read_bytes()
    assert "processor_config.json" in files and "vq_model/model.safetensors" in files
    assert not [name for name in files if name.startswith(("evaluation/", ".eval_results/"))]
    assert "99.28" not in files["README.md"].decode()
    assert "99.28" in hub.files("tester/processor")["README.md"].decode()


def test_parts_stand_alone(hub: HubServer, seen: dict) -> None:
    assert set(hub.files("tester/only-vq")) == {"README.md", "config.json", "model.safetensors"}
    assert set(hub.files("tester/only-bpe")) == {"README.md", "image_bpe.json"}
    assert seen["bpe"] == 12
