"""What is saved loads in another process and does the same: every Auto class, from a folder and from a
repository, with this package and without it."""

from __future__ import annotations

import pytest
from behaviour_fixtures import BEHAVIOUR, in_new_process
from checkpoint_fixtures import tiny_checkpoint
from stand_in.server import HubServer

from being_vl.hub.checkpoint import save_checkpoint
from being_vl.models import generation_being_vl


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict[str, dict]:
    """What a checkpoint does here, and in two other processes: with this package and without it.

    The first pushes it to the Hub, by `push_to_hub` of model and processor and as a whole folder.
    """
    folder = tmp_path_factory.mktemp("saved")
    source = str(folder / "checkpoint")
    model, processor = tiny_checkpoint("llama-3")
    save_checkpoint(model, processor, source, remote_code=True)
    scope: dict = {}
    exec(BEHAVIOUR, scope)
    seen = {"here": scope["behaviour"](source, False)}
    with HubServer() as hub:
        code = f"""
import being_vl
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM, AutoProcessor
AutoModelForCausalLM.from_pretrained({source!r}).push_to_hub("tester/pushed")
AutoProcessor.from_pretrained({source!r}).save_pretrained("again", push_to_hub=True, repo_id="tester/pushed")
HfApi().create_repo("tester/whole")
HfApi().upload_folder(repo_id="tester/whole", folder_path={source!r})
{BEHAVIOUR}
print(json.dumps({{"folder": behaviour({source!r}, False), "hub": behaviour("tester/pushed", False)}}))
"""
        run = in_new_process(code, folder / "with", hub.environment(folder / "with_home"))
        seen |= {f"{name}, with the package": value for name, value in run.items()}
        assert "vq_model/model.safetensors" in hub.files("tester/pushed")
        code = f"""
import sys; sys.modules["being_vl"] = None  # as where it is not installed
sys.modules["numba"] = None  # which would compile the kernels anew in each folder
{BEHAVIOUR}
print(json.dumps({{"folder": behaviour({source!r}, True), "hub": behaviour("tester/whole", True)}}))
"""
        run = in_new_process(code, folder / "without", hub.environment(folder / "without_home"))
        seen |= {f"{name}, without the package": value for name, value in run.items()}
    return seen


@pytest.mark.parametrize("source", ["folder", "hub"])
def test_a_new_process_with_the_package_does_the_same(seen: dict[str, dict], source: str) -> None:
    assert seen["here"]["modules"] == ["being_vl"]
    assert seen[f"{source}, with the package"] == seen["here"]


@pytest.mark.parametrize("source", ["folder", "hub"])
def test_a_new_process_without_the_package_does_the_same(
    seen: dict[str, dict], source: str
) -> None:
    got = dict(seen[f"{source}, without the package"])
    assert got.pop("modules") == ["transformers_modules"]
    assert got == {name: value for name, value in seen["here"].items() if name != "modules"}


def test_a_model_made_of_weights_alone_asks_no_repository(monkeypatch) -> None:
    """transformers names it "None", of which there might be merge rules on the Hub."""
    model, _ = tiny_checkpoint("smollm")
    monkeypatch.setattr(generation_being_vl, "cached_file", None)  # whoever calls it fails
    made = type(model).from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert made._checkpoint_source() is None
