"""BeingVLTokenizer under transformers' tokenizer mixins, over the three kinds of Llama tokenizers."""

import shutil
import tempfile
import unittest
from pathlib import Path
from unittest.mock import patch

from checkpoint_fixtures import TEXT_TOKENIZERS, image_bpe
from mixin_distribution import mixin_module

from being_vl import BeingVLTokenizer

tokenization = mixin_module("test_tokenization_common")
backend = mixin_module("test_tokenizers_backend_mixin")

_STANDINS = Path(__file__).parent / "standins"


class _TokenizerTests(tokenization.TokenizerTesterMixin):
    tokenizer_class = BeingVLTokenizer
    family: str

    @classmethod
    def setUpClass(cls):
        cls.source = tempfile.mkdtemp()
        tokenizer = BeingVLTokenizer.from_text_tokenizer(TEXT_TOKENIZERS[cls.family](), image_bpe())
        tokenizer.save_pretrained(cls.source)
        cls.from_pretrained_id = [cls.source]
        with patch.object(tokenization, "get_tests_dir", lambda: str(_STANDINS)):
            super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        shutil.rmtree(cls.source)


class Llama3TokenizerTest(_TokenizerTests, backend.TokenizersBackendTesterMixin, unittest.TestCase):
    """With the backend's mixin, which is meant to run for one tokenizer, and one that splits at spaces."""

    rust_tokenizer_class = BeingVLTokenizer
    family = "llama-3"


class Llama2TokenizerTest(_TokenizerTests, unittest.TestCase):
    family = "llama-2"


class SmolLMTokenizerTest(_TokenizerTests, unittest.TestCase):
    family = "smollm"
