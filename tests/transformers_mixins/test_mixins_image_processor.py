"""BeingVLImageProcessor under transformers' image processor mixin."""

import unittest

from mixin_distribution import mixin_module

from being_vl import BeingVLImageProcessor

image_processing = mixin_module("test_image_processing_common")


class BeingVLImageProcessingTester(image_processing.ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"shortest_edge": 18})
        kwargs.setdefault("crop_size", {"height": 18, "width": 18})
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):
        return {"pil": BeingVLImageProcessor}


class BeingVLImageProcessingTest(image_processing.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = BeingVLImageProcessingTester

    @unittest.skip(
        "a rule for models inside transformers: ours is PIL's alone, since the codes of an image depend on "
        "Chameleon's LANCZOS, which torchvision does not have for tensors"
    )
    def test_new_models_require_torchvision_backend(self):
        pass

    @unittest.skip(
        "its process imports transformers alone, which knows no image processor of ours; the other tests "
        "run without torchvision as they are"
    )
    def test_pil_can_run_without_torchvision(self):
        pass
