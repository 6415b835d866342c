"""BeingVLConfig, BeingVLModel and BeingVLForCausalLM under transformers' model, config and training mixins."""

import unittest
from unittest.mock import patch

import torch
from mixin_distribution import mixin_module
from transformers.testing_utils import torch_device

from being_vl import BeingVLConfig, BeingVLForCausalLM
from being_vl.models.modeling_being_vl import BeingVLModel

modeling = mixin_module("test_modeling_common")
configuration = mixin_module("test_configuration_common")
training = mixin_module("test_training_mixin")
generation = mixin_module("generation.test_utils")


class BeingVLModelTester:
    """Makes the tiny configuration and inputs that the mixins ask for."""

    is_training = True
    batch_size = 3
    seq_length = 7
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    causal_lm_class = BeingVLForCausalLM

    def get_config(self) -> BeingVLConfig:
        return BeingVLConfig(
            text_vocab_size=60,
            num_special_tokens=4,
            codebook_size=15,
            num_merges=20,
            boi_token_id=62,
            eoi_token_id=63,
            image_token_id=61,
            image_grid_size=[3, 3],
            hidden_size=self.hidden_size,
            intermediate_size=37,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=2,
            max_position_embeddings=512,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        shape = [self.batch_size, self.seq_length]
        input_ids = modeling.ids_tensor(shape, config.vocab_size - 1) + 1  # no padding
        mask = torch.ones(shape, dtype=torch.long, device=torch_device).tril(diagonal=2)
        return config, {"input_ids": input_ids, "attention_mask": mask}


class BeingVLModelTest(
    modeling.ModelTesterMixin,
    generation.GenerationTesterMixin,
    training.TrainingTesterMixin,
    unittest.TestCase,
):
    all_model_classes = (BeingVLModel, BeingVLForCausalLM)
    test_can_init_all_missing_weights_before_2023 = True
    model_tester = None

    def setUp(self):
        self.model_tester = BeingVLModelTester()
        self.config_tester = configuration.ConfigTester(
            self, config_class=BeingVLConfig, hidden_size=32
        )
        # The mixins tell heads from bodies by these tables of the models inside transformers.
        for table, model_class in (
            ("MODEL_MAPPING_NAMES", BeingVLModel),
            ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", BeingVLForCausalLM),
        ):
            entry = patch.dict(getattr(modeling, table), {"being_vl": model_class.__name__})
            entry.start()
            self.addCleanup(entry.stop)

    def test_config(self):
        self.config_tester.run_common_tests()
