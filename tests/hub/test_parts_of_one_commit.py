"""Whatever came with a checkpoint of a repository is there after load → save, from the commit that was loaded."""

from __future__ import annotations

import json

import pytest
import torch
from behaviour_fixtures import in_new_process
from checkpoint_fixtures import tiny_checkpoint
from quantizer_fixtures import make
from stand_in.server import HubServer
from stand_in.storage import read_folder

from being_vl.hub.checkpoint import save_checkpoint
from being_vl.quantizers.modeling_being_vl_adapted_vq import adapt

# `keep` saves a part as it was loaded; each repository has another checkpoint at its newest commit and at its root.
_LOAD = """
import json, os, sys
import being_vl
from pathlib import Path  # in the new process
from transformers import (AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer)

seen = {}

def keep(name, part):
    part.save_pretrained(name)
    seen[name] = {str(p.relative_to(name)): p.read_bytes().hex() for p in sorted(Path(name).rglob("*"))
                  if p.is_file() and p.suffix != ".md"}

where = dict(revision="v1", subfolder="small", cache_dir="cache", token=os.environ["HF_TOKEN"])
os.environ["HF_TOKEN"] = "nobody"  # only what is handed on may open the repository
keep("model", AutoModelForCausalLM.from_pretrained("tester/mixed", **where))
keep("bfloat16", AutoModelForCausalLM.from_pretrained("tester/mixed", dtype="bfloat16", **where))
keep("tokenizer", AutoTokenizer.from_pretrained("tester/mixed", **where))
keep("processor", AutoProcessor.from_pretrained("tester/mixed", **where))
keep("image_processor", AutoImageProcessor.from_pretrained("tester/mixed", **where))
keep("vq_model", AutoModel.from_pretrained("tester/mixed", **{**where, "subfolder": "small/vq_model"}))
# From the cache alone.
keep("local", AutoModelForCausalLM.from_pretrained("tester/mixed", local_files_only=True, **where))
keep("local_processor", AutoProcessor.from_pretrained("tester/mixed", local_files_only=True, **where))
# A part brings the rest of its own checkpoint with it, not of the one at the root.
for name, part in (("model", AutoModelForCausalLM.from_pretrained("tester/mixed", **where)),
                   ("vq_model", AutoModel.from_pretrained("tester/mixed", **{**where, "subfolder": "small/vq_model"})),
                   ("tokenizer", AutoTokenizer.from_pretrained("tester/mixed", **where))):
    part.push_to_hub(f"tester/pushed-{name}", token=where["token"])
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """What each part saves, the files of the commit that was asked for, and of the repositories pushed to."""
    folder = tmp_path_factory.mktemp("commit")
    save_checkpoint(*tiny_checkpoint("llama-3"), folder / "wanted")
    save_checkpoint(*tiny_checkpoint("smollm"), folder / "other")
    other = read_folder(folder / "other")
    other["image_bpe.json"] = b"{}"  # whoever reads it fails
    with HubServer() as hub:
        wanted = read_folder(folder / "wanted")
        first = {f"small/{path}": content for path, content in wanted.items()} | other
        hub.add_repository("tester/mixed", first)
        repository = hub.repositories["model", "tester/mixed"]
        repository.refs["v1"] = repository.refs["main"]
        repository.add({f"small/{path}": content for path, content in other.items()}, message="2")
        repository.private = True
        seen = in_new_process(_LOAD, folder / "run", hub.environment(folder / "home"))
        pushed = {name: hub.files(name) for _, name in hub.repositories if "pushed" in name}
    return seen, wanted, pushed


@pytest.mark.parametrize("part", ["model", "local", "bfloat16"])
def test_a_model_keeps_the_rules_of_its_commit(loaded, part: str) -> None:
    seen, wanted, _ = loaded
    assert bytes.fromhex(seen[part]["image_bpe.json"]) == wanted["image_bpe.json"]
    same = bytes.fromhex(seen[part]["model.safetensors"]) == wanted["model.safetensors"]
    assert same == (part != "bfloat16")


@pytest.mark.parametrize("part", ["processor", "local_processor", "tokenizer"])
def test_processor_and_tokenizer_keep_their_files(loaded, part: str) -> None:
    seen, wanted, _ = loaded
    names = {"image_bpe.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    if part != "tokenizer":
        names |= {"processor_config.json", "vq_model/config.json", "vq_model/model.safetensors"}
    for name in names:
        found = bytes.fromhex(seen[part][name])
        if name.endswith(".json"):
            # transformers adds what it was told of the Hub to tokenizer_config.json.
            assert json.loads(wanted[name]).items() <= json.loads(found).items(), name
        else:
            assert found == wanted[name], name


def test_quantizer_and_image_processor(loaded) -> None:
    seen, wanted, _ = loaded
    assert (
        bytes.fromhex(seen["vq_model"]["model.safetensors"]) == wanted["vq_model/model.safetensors"]
    )
    assert "preprocessor_config.json" in seen["image_processor"]


@pytest.mark.parametrize("part", ["model", "vq_model", "tokenizer"])
def test_a_pushed_part_brings_the_rest_of_its_own_checkpoint(loaded, part: str) -> None:
    _, wanted, pushed = loaded
    found = pushed[f"tester/pushed-{part}"]
    for name in ("model.safetensors", "vq_model/model.safetensors", "image_bpe.json"):
        assert found[name] == wanted[name], name


_QUANTIZER = """
import json
import torch
from pathlib import Path
from PIL import Image
from being_vl.cli import main
from being_vl.quantizers.quantizer import load_quantizer

Path("images").mkdir()
Image.new("RGB", (32, 32), (9, 90, 200)).save("images/a.png")
pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
codes = {}
for name in ("pipeline/vqvae", "janus/deep/er"):
    codes[name] = load_quantizer(f"tester/{name}").encode(pixels).tolist()
    arguments = ["encode", "--quantizer", f"tester/{name}", "--images", "images", "--output", name.replace("/", "-")]
    assert main(arguments) == 0
try:
    load_quantizer("tester/pipeline")
except OSError as error:
    codes["error"] = str(error)
print(json.dumps(codes))
"""


def test_a_folder_of_a_repository_holds_a_quantizer(tmp_path) -> None:
    """`owner/name/folder`, as a pipeline of diffusers has its VQModel, in Python and in a command."""
    pipeline, janus = make("diffusers"), make("janus")
    pipeline.save_pretrained(tmp_path / "pipeline" / "vqvae")
    index = json.dumps({"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"]})
    (tmp_path / "pipeline" / "model_index.json").write_text(index)
    janus.save_pretrained(tmp_path / "janus" / "deep" / "er")
    with HubServer() as hub:
        for name in ("pipeline", "janus"):
            hub.add_repository(f"tester/{name}", read_folder(tmp_path / name))
        found = in_new_process(_QUANTIZER, tmp_path / "run", hub.environment(tmp_path / "home"))
    error = "tester/pipeline: a pipeline of diffusers; its quantizer is tester/pipeline/vqvae"
    assert found.pop("error") == error
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for name, model in (("pipeline/vqvae", pipeline), ("janus/deep/er", janus)):
        assert found[name] == adapt(model).encode(pixels).tolist()
