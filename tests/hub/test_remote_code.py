"""Code that travels with a checkpoint: generated, the same bytes each time, and handed on by whoever loads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from behaviour_fixtures import BEHAVIOUR, in_new_process
from checkpoint_fixtures import patch_vq, tiny_checkpoint
from stand_in.server import HubServer
from stand_in.storage import read_folder
from transformers import AutoModelForCausalLM
from transformers.dynamic_module_utils import get_relative_import_files

from being_vl import BeingVLForCausalLM, BeingVLPatchVQModel, BeingVLProcessor
from being_vl.hub.checkpoint import save_checkpoint
from being_vl.hub.classes import CLASSES
from being_vl.hub.flat_modules import flat_modules, flat_name
from being_vl.hub.remote_code import add_remote_code

_ENTRIES = {
    flat_name(name.rpartition(".")[0]) for classes in CLASSES.values() for name in classes.values()
}


def code_of(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name.endswith(".py")}


def test_transformers_finds_every_module_that_travels(tmp_path: Path) -> None:
    """Its reader of imports follows ours to the end, and to nothing that is not there."""
    for entry in sorted(_ENTRIES):
        sources = flat_modules([entry])
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source)
        found = {Path(file).stem for file in get_relative_import_files(tmp_path / f"{entry}.py")}
        assert found | {entry} == set(sources)


def test_flat_modules_of_a_flat_folder_are_its_files(tmp_path: Path) -> None:
    sources = flat_modules(_ENTRIES)
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
    assert flat_modules(_ENTRIES, tmp_path) == sources == flat_modules(_ENTRIES)
    assert {"image_bpe", "vocabulary", "modeling_being_vl", "processing_being_vl"} <= set(sources)


def test_what_cannot_be_flat_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from . import b\n")
    (tmp_path / "b.py").write_text("")
    with pytest.raises(ValueError, match=r"a\.py:1: a module that travels .*: from \. import b"):
        flat_modules(["a"], tmp_path)


@pytest.mark.parametrize("registered", [BeingVLForCausalLM, BeingVLPatchVQModel, BeingVLProcessor])
def test_a_registered_class_is_saved_with_its_code(
    tmp_path: Path, monkeypatch, registered: type
) -> None:
    """`register_for_auto_class` and `save_pretrained` write what `add_remote_code` does."""
    model, processor = tiny_checkpoint("smollm")
    part = {BeingVLForCausalLM: model, BeingVLPatchVQModel: patch_vq()}.get(registered, processor)
    part.save_pretrained(tmp_path / "plain")
    assert not list((tmp_path / "plain").rglob("*.py"))
    monkeypatch.setattr(registered, "_carries_code", False)
    registered.register_for_auto_class()
    part.save_pretrained(tmp_path / "carried")
    add_remote_code(tmp_path / "plain")
    assert read_folder(tmp_path / "carried") == read_folder(tmp_path / "plain")


def test_a_checkpoint_with_code_keeps_it(tmp_path: Path) -> None:
    """Loaded by the package, trained and saved, it still loads where the package is not installed."""
    save_checkpoint(*tiny_checkpoint("smollm"), tmp_path / "one", remote_code=True)
    AutoModelForCausalLM.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    BeingVLProcessor.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    one, two = (read_folder(tmp_path / name) for name in ("one", "two"))
    assert code_of(two) == code_of(one)
    for name in ("config.json", "tokenizer_config.json", "processor_config.json"):
        assert json.loads(two[name])["auto_map"] == json.loads(one[name])["auto_map"]


def test_a_users_class_is_saved_as_transformers_does(tmp_path: Path, monkeypatch) -> None:
    """Its module imports being_vl; ours must not overwrite what transformers says of it."""
    (tmp_path / "modeling_mine.py").write_text(
        "from being_vl import BeingVLForCausalLM\n\nclass Mine(BeingVLForCausalLM):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from modeling_mine import Mine

    Mine.register_for_auto_class("AutoModelForCausalLM")
    Mine(tiny_checkpoint("smollm")[0].config).save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["auto_map"] == {"AutoModelForCausalLM": "modeling_mine.Mine"}
    assert [path.name for path in (tmp_path / "saved").glob("*.py")] == ["modeling_mine.py"]
    assert BeingVLForCausalLM._auto_class is None and not BeingVLForCausalLM._carries_code


# A checkpoint goes from hand to hand: each loads it without the package, saves it and pushes it.
_HAND_ON = """
import sys
for blocked in {blocked!r}:
    sys.modules[blocked] = None
{behaviour}
from transformers import AutoModelForCausalLM, AutoProcessor
seen = {{"hub": behaviour({source!r}, True)}}
model = AutoModelForCausalLM.from_pretrained({source!r}, trust_remote_code=True)
processor = AutoProcessor.from_pretrained({source!r}, trust_remote_code=True)
model.save_pretrained("saved")
processor.save_pretrained("saved")
sys.modules["numba"] = None  # which would compile the kernels anew in each folder
seen["folder"] = behaviour("saved", True)
model.push_to_hub({target!r})
processor.push_to_hub({target!r})
# A part alone brings the rest of the checkpoint with it.
processor.image_processor.push_to_hub({target!r} + "-by-part")
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def generations(tmp_path_factory) -> tuple[dict[str, dict], dict[str, dict[str, bytes]]]:
    """What each generation does, and the files of each repository."""
    folder = tmp_path_factory.mktemp("generations")
    save_checkpoint(*tiny_checkpoint("llama-3"), folder / "first", remote_code=True)
    scope: dict = {}
    exec(BEHAVIOUR, scope)
    seen = {"here": scope["behaviour"](str(folder / "first"), False)}
    with HubServer() as hub:
        hub.add_repository("tester/first", folder / "first")
        for source, target, blocked in (
            ("tester/first", "tester/second", ["being_vl"]),
            ("tester/second", "tester/third", ["being_vl", "numba"]),
            ("tester/third", "tester/fourth", ["being_vl", "numba"]),
        ):
            code = _HAND_ON.format(
                behaviour=BEHAVIOUR, source=source, target=target, blocked=blocked
            )
            name = target.rpartition("/")[2]
            run = in_new_process(code, folder / name, hub.environment(folder / f"{name}_home"))
            seen |= {f"{source} from the {kind}": value for kind, value in run.items()}
        files = {name: hub.files(name) for _, name in hub.repositories}
    return seen, files


def test_every_generation_does_the_same(generations) -> None:
    seen, _ = generations
    want = seen.pop("here")
    assert len(seen) == 6
    for name, got in seen.items():
        assert got.pop("modules") == ["transformers_modules"], name
        assert got == {key: value for key, value in want.items() if key != "modules"}, name


def test_every_generation_carries_the_same_code(generations) -> None:
    _, files = generations
    want = code_of(files["tester/first"])
    assert "modeling_being_vl.py" in want and "vq_model/modeling_being_vl_patch_vq.py" in want
    for name, got in files.items():
        assert code_of(got) == want, name
        assert "model.safetensors" in got and "vq_model/model.safetensors" in got, name
        assert (
            json.loads(got["config.json"])["auto_map"]
            == json.loads(files["tester/first"]["config.json"])["auto_map"]
        ), name
