"""The classes of every family under transformers' model, configuration, generation and training mixins."""

import unittest
from unittest.mock import patch

import pytest
import torch
from mixin_distribution import mixin_module
from transformers.testing_utils import torch_device

import being_vl
from being_vl.models.families import FAMILIES

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

    def __init__(self, family):
        self.config_class = getattr(being_vl, family.config_class)
        self.causal_lm_class = getattr(being_vl, family.language_model_class)

    def get_config(self):
        own_size = {"head_dim": 8} if hasattr(self.config_class, "head_dim") else {}
        return self.config_class(
            **own_size,
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


class FamilyTest(
    modeling.ModelTesterMixin,
    generation.GenerationTesterMixin,
    training.TrainingTesterMixin,
):
    test_can_init_all_missing_weights_before_2023 = True
    # test_training_overfit repeats 19 ids in two equal rows: one row of these ids says as much, in fewer, larger steps.
    training_overfit_steps = 120
    training_overfit_batch_size = 1
    training_overfit_learning_rate = 3e-3
    training_overfit_seq_length = 24
    model_tester = None
    family = None

    def setUp(self):
        self.model_tester = BeingVLModelTester(self.family)
        self.config_tester = configuration.ConfigTester(
            self,
            config_class=self.model_tester.config_class,
            hidden_size=32,
            text_vocab_size=130000,  # the default end tokens of OLMo 2 and SmolLM 3 lie beyond 32,000
        )
        # The mixins tell heads from bodies by these tables of the models inside transformers.
        for table, model_class in (
            ("MODEL_MAPPING_NAMES", self.family.decoder_class),
            ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", self.family.language_model_class),
        ):
            entry = patch.dict(getattr(modeling, table), {self.family.model_type: model_class})
            entry.start()
            self.addCleanup(entry.stop)

    def test_config(self):
        self.config_tester.run_common_tests()


# Gemma's rotary embedding has a frequency a kind of layer, which these tests do not know; transformers' own
# test of Gemma 3 leaves them out too.
_ONE_FREQUENCY = (
    "test_model_rope_scaling_frequencies",
    "test_model_rope_scaling_from_config_0_linear",
    "test_model_rope_scaling_from_config_1_dynamic",
    "test_model_rope_scaling_from_config_2_yarn",
)

# These skip themselves, for every family: they are of models with parts, experts or conversions of weights.
_OF_OTHER_MODELS = (
    "test_attn_implementation_composite_models",
    "test_can_load_from_already_mapped_keys",
    "test_can_set_attention_dynamically_composite_model",
    "test_eager_matches_batched_and_grouped_inference_0_fp16",
    "test_eager_matches_batched_and_grouped_inference_1_fp32",
    "test_eager_matches_batched_and_grouped_inference_2_bf16",
    "test_encoder_decoder_loss_no_double_shift",
    "test_internal_model_config_and_subconfig_are_same",
    "test_keep_in_fp32_modules",
    "test_keep_in_fp32_modules_exist",
    "test_moe_models_record_router_logits",
    "test_output_router_logits_from_config",
    "test_resize_position_vector_embeddings",
    "test_reverse_loading_mapping",
    "test_sdpa_can_dispatch_composite_models",
    "test_vision_axial_rope",
)


@pytest.mark.parametrize("family", FAMILIES, ids=[family.own for family in FAMILIES])
def test_what_is_left_out_skips_itself(family):
    classes = [getattr(being_vl, n) for n in (family.decoder_class, family.language_model_class)]
    body = {"family": family, "all_model_classes": classes}
    whole = type("Whole", (FamilyTest, unittest.TestCase), body)
    for name in _OF_OTHER_MODELS:
        if hasattr(FamilyTest, name):  # not every version has all of them
            result = unittest.TestResult()
            whole(name).run(result)
            assert result.skipped and result.wasSuccessful(), name


# A class a family, by name, since unittest has no parameters for mixins.
for _family in FAMILIES:
    _name = f"{_family.own}ModelTest"
    _classes = tuple(
        getattr(being_vl, name) for name in (_family.decoder_class, _family.language_model_class)
    )
    _left_out = dict.fromkeys(_OF_OTHER_MODELS)
    if _family.stock == "Gemma3":
        _left_out |= dict.fromkeys(_ONE_FREQUENCY)
    globals()[_name] = type(
        _name,
        (FamilyTest, unittest.TestCase),
        {"family": _family, "all_model_classes": _classes, "__module__": __name__, **_left_out},
    )
