"""Auto classes find ours, in whatever order the two packages are imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_CHECK = """
import transformers
from being_vl import (BeingVLConfig, BeingVLForCausalLM, BeingVLImageProcessor, BeingVLPatchVQConfig,
                      BeingVLPatchVQModel, BeingVLProcessor, BeingVLTokenizer, BeingVLVQConfig, BeingVLVQModel)
from transformers.models.auto import (IMAGE_PROCESSOR_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING,
                                      MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING,
                                      MODEL_MAPPING, PROCESSOR_MAPPING, TOKENIZER_MAPPING)
for config in (BeingVLConfig, BeingVLVQConfig, BeingVLPatchVQConfig):
    assert type(transformers.AutoConfig.for_model(config.model_type)) is config
for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING):
    assert mapping[BeingVLConfig] is BeingVLForCausalLM
assert MODEL_MAPPING[BeingVLVQConfig] is BeingVLVQModel
assert MODEL_MAPPING[BeingVLPatchVQConfig] is BeingVLPatchVQModel
assert TOKENIZER_MAPPING[BeingVLConfig] is BeingVLTokenizer
assert PROCESSOR_MAPPING[BeingVLConfig] is BeingVLProcessor
assert BeingVLImageProcessor in IMAGE_PROCESSOR_MAPPING[BeingVLConfig].values()
"""


_FIRST = [
    "import being_vl; from transformers import AutoConfig",
    "import being_vl; from transformers import LlamaConfig, LlamaForCausalLM",
    "from transformers import AutoModelForCausalLM, AutoProcessor; import being_vl",
    "from being_vl import BeingVLForCausalLM",
    "from being_vl.hub.checkpoint import init_checkpoint",
]

# What neither package is part of is imported once; each order then has a process of its own.
_FORK = """
import os, sys, traceback
import numba, numpy, PIL.Image, tokenizers, torch
def run(code):
    child = os.fork()
    if child == 0:
        try:
            exec(code, {})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert not any(name.split(".")[0] in ("transformers", "being_vl") for name in sys.modules)
failed = [first for first in FIRST if run(first + CHECK)]
assert not failed, failed
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_registered_in_any_import_order() -> None:
    code = f"FIRST = {_FIRST!r}\nCHECK = {_CHECK!r}\n{_FORK}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
