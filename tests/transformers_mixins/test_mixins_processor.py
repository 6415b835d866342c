"""BeingVLProcessor under transformers' processor mixin."""

import inspect
import unittest
from unittest.mock import patch

import numpy as np
from checkpoint_fixtures import patch_vq, tiny_checkpoint
from mixin_distribution import mixin_module
from transformers import ProcessorMixin

from being_vl import BeingVLProcessor
from being_vl.quantizers import quantizing

processing = mixin_module("test_processing_common")


class BeingVLProcessorTest(processing.ProcessorTesterMixin, unittest.TestCase):
    processor_class = BeingVLProcessor
    # Pixels end in the processor: what stands for an image in its output is ids.
    images_input_name = "input_ids"

    @classmethod
    def _setup_from_components(cls):
        return tiny_checkpoint()[1]

    def prepare_components(self, **kwargs):
        return {**super().prepare_components(**kwargs), "vq_model": patch_vq()}

    def setUp(self):
        self.pixel_values = []
        encode_by_size = quantizing.encode_by_size

        def remember(pictures, *args, **kwargs):
            pictures = list(pictures)
            self.pixel_values = [values for _, values in pictures]
            return encode_by_size(pictures, *args, **kwargs)

        spy = patch.object(quantizing, "encode_by_size", remember)
        spy.start()
        self.addCleanup(spy.stop)

    @staticmethod
    def does_processor_return_mm_offsets(processor_class, method_name):
        """The mixin looks one class up, where ours has the mixin that pushes; transformers' is above it."""
        return getattr(processor_class, method_name) is not getattr(ProcessorMixin, method_name)

    def _check_modality_outputs(self, inputs, modality):
        if modality == "images":  # the mixin's calls turn the sign of the pixels
            self.assertLessEqual(np.mean(self.pixel_values[0]), 0)

    @unittest.skip(
        "gives a video to a checkpoint without videos, which refuses it: see tests/processing"
    )
    def test_model_input_names(self):
        pass

    @unittest.skip(
        "gives a video to a checkpoint without videos, which refuses it: see tests/processing"
    )
    def test_flat_kwarg_applied_when_modality_dict_lacks_it(self):
        pass

    def test_init_arguments_not_in_class_attributes(self):
        """Of ours, the arguments `vq_model` and `vq_device` are properties, which hold no default."""
        arguments = self._get_explicit_arguments(BeingVLProcessor.__init__)
        shared = {name for name in arguments if hasattr(BeingVLProcessor, name)}
        for name in shared:
            self.assertIsInstance(inspect.getattr_static(BeingVLProcessor, name), property)

    def test_get_num_multimodal_tokens_matches_processor_call(self):
        """The image BPE decides by content how many tokens an image takes: the helper gives a bound."""
        processor = self.get_processor()
        sizes = [(100, 100), (300, 100), (500, 30), (213, 167)]
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 255, (h, w, 3), dtype=np.uint8) for h, w in sizes]
        text = [f"An image {self.image_token}"] * len(images)
        kinds = processor(text=text, images=images, return_mm_token_type_ids=True)[
            "mm_token_type_ids"
        ]
        bounds = processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]
        for row, bound in zip(kinds, bounds, strict=True):
            self.assertTrue(2 < sum(row) <= bound)
