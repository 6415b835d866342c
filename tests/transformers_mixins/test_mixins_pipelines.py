"""BeingVLModel and BeingVLForCausalLM under transformers' pipeline mixin.

The mixin loads tiny models from a folder, one for each architecture, and the test class of each pipeline by
name; it finds both here.
"""

import json
import os
import shutil
import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pipeline_cases
from checkpoint_fixtures import tiny_checkpoint
from mixin_distribution import mixin_module

from being_vl import BeingVLForCausalLM, BeingVLImageProcessor, BeingVLProcessor, BeingVLTokenizer
from being_vl.models.modeling_being_vl import BeingVLModel

_MODELS = (BeingVLModel, BeingVLForCausalLM)
_TINY_MODELS = Path(tempfile.mkdtemp())
_SUMMARY = {
    "tokenizer_classes": ["BeingVLTokenizer"],
    "processor_classes": ["BeingVLImageProcessor"],
}

(_TINY_MODELS / "reports").mkdir()
(_TINY_MODELS / "reports" / "tiny_model_summary.json").write_text(
    json.dumps({model.__name__: _SUMMARY for model in _MODELS})
)
with patch.dict(os.environ, TRANSFORMERS_TINY_MODEL_PATH=str(_TINY_MODELS)):
    pipelines = mixin_module("test_pipeline_mixin")

_OUR_CASES = {
    "text-generation": "TextGenerationPipelineTests",
    "feature-extraction": "FeatureExtractionPipelineTests",
    "image-text-to-text": "ImageTextToTextPipelineTests",
    "any-to-any": "AnyToAnyPipelineTests",
}


class BeingVLPipelineTest(pipelines.PipelineTesterMixin, unittest.TestCase):
    pipeline_model_mapping = {  # noqa: RUF012
        "text-generation": BeingVLForCausalLM,
        "feature-extraction": BeingVLModel,
        "image-text-to-text": BeingVLForCausalLM,
        "any-to-any": BeingVLForCausalLM,
    }

    @classmethod
    def setUpClass(cls):
        model, processor = tiny_checkpoint()
        for saved in (model, model.model):
            folder = _TINY_MODELS / "being_vl" / type(saved).__name__
            saved.save_pretrained(folder)
            processor.save_pretrained(folder)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(_TINY_MODELS)

    def setUp(self):
        ours = SimpleNamespace(
            BeingVLTokenizer=BeingVLTokenizer,
            BeingVLImageProcessor=BeingVLImageProcessor,
            BeingVLProcessor=BeingVLProcessor,
        )
        tests = {
            task: {"test": f"{pipeline_cases.__name__}.{name}"} for task, name in _OUR_CASES.items()
        }
        for replaced in (
            patch.object(pipelines, "transformers_module", ours),
            patch.dict(pipelines.PROCESSOR_MAPPING_NAMES, being_vl="BeingVLProcessor"),
            patch.dict(pipelines.pipeline_test_mapping, tests),
        ):
            replaced.start()
            self.addCleanup(replaced.stop)
