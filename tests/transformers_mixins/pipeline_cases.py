"""Stand-ins for the test classes of pipelines, which transformers' pipeline mixin looks up and which do not ship."""

import unittest

import numpy as np
from PIL import Image
from transformers import (
    AnyToAnyPipeline,
    FeatureExtractionPipeline,
    ImageTextToTextPipeline,
    TextGenerationPipeline,
)

_NEW_TOKENS = 5


def _picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


class TextGenerationPipelineTests(unittest.TestCase):
    def get_test_pipeline(self, model, tokenizer=None, processor=None, dtype="float32", **_):
        pipe = TextGenerationPipeline(
            model=model,
            tokenizer=tokenizer,
            dtype=dtype,
            max_new_tokens=_NEW_TOKENS,
            do_sample=False,  # this pipeline alone samples by default
        )
        return pipe, ["What is in the picture?", "Yes, it is."]

    def run_pipeline_test(self, pipe, examples):
        for text in examples:
            (full,) = pipe(text)
            self.assertTrue(full["generated_text"].startswith(text))
            (new,) = pipe(text, return_full_text=False)
            self.assertEqual(text + new["generated_text"], full["generated_text"])


class FeatureExtractionPipelineTests(unittest.TestCase):
    def get_test_pipeline(self, model, tokenizer=None, processor=None, dtype="float32", **_):
        pipe = FeatureExtractionPipeline(model=model, tokenizer=tokenizer, dtype=dtype)
        return pipe, ["What is in the picture?", "Yes, it is."]

    def run_pipeline_test(self, pipe, examples):
        for text in examples:
            features = np.array(pipe(text))
            length = len(pipe.tokenizer(text)["input_ids"])
            self.assertEqual(features.shape, (1, length, pipe.model.config.hidden_size))


class ImageTextToTextPipelineTests(unittest.TestCase):
    pipeline_class = ImageTextToTextPipeline

    def get_test_pipeline(self, model, tokenizer=None, processor=None, dtype="float32", **_):
        pipe = self.pipeline_class(
            model=model, processor=processor, dtype=dtype, max_new_tokens=_NEW_TOKENS
        )
        token = processor.image_token
        texts = [f"{token} What is this?", f"This is {token}. Is it red?"]
        return pipe, [{"images": _picture(i), "text": text} for i, text in enumerate(texts)]

    def run_pipeline_test(self, pipe, examples):
        for example in examples:
            (answer,) = pipe(**example)
            self.assertEqual(answer["input_text"], example["text"])
            self.assertTrue(answer["generated_text"].startswith(example["text"]))
            (tokens,) = pipe(**example, return_tensors=True)
            ids = pipe.processor(**example)["input_ids"][0]
            self.assertEqual(list(tokens["generated_token_ids"][: len(ids)]), ids)


class AnyToAnyPipelineTests(ImageTextToTextPipelineTests):
    pipeline_class = AnyToAnyPipeline

    def run_pipeline_test(self, pipe, examples):
        super().run_pipeline_test(pipe, examples)
        (drawn,) = pipe(**examples[0], generation_mode="image")
        height, width = pipe.model.config.image_grid_size
        cell = pipe.processor.vq_model.config.downsampling
        self.assertEqual(drawn["generated_image"].size, (width * cell, height * cell))
