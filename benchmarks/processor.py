"""How fast texts and codes become ids, beside a peer on the same texts; and how fast the tokenizer loads.

    python benchmarks/processor.py [--samples 2000] [--batch-size 64] [--json]

Ours gets `image_codes=` (32×32 grids that the image BPE turns into 256 tokens) and does all that it does:
image BPE, tokenizing, ids in place. The peer is Chameleon's processor without its image processor's work:
texts with one placeholder for an image, expanded to 256, tokenized. Both use one Llama-3-sized fast
tokenizer, here trained on synthetic words, with 16,389 added tokens. Rates are samples per second of wall
time, on the threads that the machine gives; CPU seconds stand beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable

import numpy as np
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    ChameleonImageProcessorPil,
    ChameleonProcessor,
    PreTrainedTokenizerFast,
)

from being_vl import BeingVLProcessor, BeingVLTokenizer, ImageBPE
from being_vl.processing.chat_templates import default_chat_template
from being_vl.processing.tokenization_being_vl import LLAMA_31_SPECIAL_TOKENS
from being_vl.quantizers.image_processing_being_vl import BeingVLImageProcessor

CODEBOOK_SIZE = NUM_MERGES = 8192
TEXT_SIZE = 128_256
TOKENS_PER_IMAGE = 256
GRID = 32
QUESTION = "What is in the picture, and what colour is the shape in the upper left corner?"
ANSWER = "A small red square; it stands above a larger blue circle."
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


class TextOfChameleon(ChameleonProcessor):
    """Chameleon's processor without the work on pixels, which its model quantizes later."""

    def _process_images(self, images: list, **kwargs: object) -> tuple[dict, list[str]]:
        return {}, [self.replace_image_token({}, index) for index in range(len(images))]


def llama_3_sized_tokenizer() -> PreTrainedTokenizerFast:
    """128,000 ordinary tokens and 256 special ones; merges make words of random letters."""
    rng = np.random.default_rng(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: index for index, char in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    letters = [*"Ġetaoinshrdlucmfwypvbgk"]
    grown = list(letters)
    for word in (QUESTION + " " + ANSWER).replace(".", "").split():
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                merges.append((word[: end - 1], word[end - 1]))
                vocabulary[word[:end]] = len(vocabulary)
    while len(vocabulary) < TEXT_SIZE - 256:
        left, right = grown[rng.integers(len(grown))], letters[rng.integers(len(letters))]
        if left + right not in vocabulary and len(left) < 12:
            vocabulary[left + right] = len(vocabulary)
            merges.append((left, right))
            grown.append(left + right)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ]
    names += [f"<|reserved_special_token_{index}|>" for index in range(256 - len(names))]
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in names]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=names[0], eos_token=names[4], model_max_length=131072
    )


def image_bpe() -> ImageBPE:
    """Rules that cut a grid of equal 2×2 blocks into one token a block: rows of two, then two rows."""
    half = NUM_MERGES // 2
    rows = [(code, code, 0, 1) for code in range(half)]
    blocks = [(CODEBOOK_SIZE + rank, CODEBOOK_SIZE + rank, 1, 0) for rank in range(half)]
    return ImageBPE(np.array(rows + blocks), CODEBOOK_SIZE)


def grids(count: int) -> list[np.ndarray]:
    """Grids of 256 blocks of 2×2 equal codes, no two neighbours alike."""
    rng = np.random.default_rng(1)
    side = GRID // 2
    pattern = np.add.outer(np.arange(side), np.arange(side)) % 2
    blocks = rng.integers(0, NUM_MERGES // 4, (count, side, side)) * 2 + pattern
    return list(blocks.repeat(2, axis=1).repeat(2, axis=2).astype(np.int16))


def measure(call: Callable[[slice], object], samples: int, batch_size: int) -> dict[str, float]:
    """Samples a second and CPU milliseconds a sample, the best of three rounds."""
    call(slice(0, batch_size))
    best: dict[str, float] = {}
    for _ in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        for start in range(0, samples, batch_size):
            call(slice(start, start + batch_size))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if not best or samples / wall > best["samples_per_second"]:
            best = {"samples_per_second": samples / wall, "cpu_ms_per_sample": 1e3 * cpu / samples}
    return best


def measure_loading(tokenizer: BeingVLTokenizer, base: PreTrainedTokenizerFast) -> dict[str, float]:
    """CPU seconds to load the tokenizer, and the text tokenizer it came from; the best of three."""
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, saved in (("being_vl", tokenizer), ("text tokenizer alone", base)):
            path = os.path.join(folder, name)
            saved.save_pretrained(path)
            times = []
            for _ in range(3):
                start = time.process_time()
                AutoTokenizer.from_pretrained(path)
                times.append(time.process_time() - start)
            seconds[name] = min(times)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    base = llama_3_sized_tokenizer()
    tokenizer = BeingVLTokenizer.from_text_tokenizer(base, image_bpe(), LLAMA_31_SPECIAL_TOKENS)
    tokenizer.chat_template = default_chat_template(tokenizer.get_vocab())
    ours = BeingVLProcessor(BeingVLImageProcessor(), tokenizer)
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": ANSWER},
    ]
    text = ours.apply_chat_template(messages)
    texts, codes = [text] * args.samples, grids(args.samples)
    conversations = [messages] * args.samples
    assert len(tokenizer.encode_codes(codes[:1])[0]) == TOKENS_PER_IMAGE

    peer = TextOfChameleon(
        ChameleonImageProcessorPil(), tokenizer, image_seq_length=TOKENS_PER_IMAGE
    )
    images = [Image.new("RGB", (1, 1))] * args.samples

    def peer_call(part: slice) -> object:
        return peer(text=texts[part], images=images[part], padding=True, add_special_tokens=False)

    def ours_call(part: slice) -> object:
        return ours(
            text=texts[part],
            image_codes=codes[part],
            padding=True,
            add_special_tokens=False,
            return_tensors="pt",
        )

    def chat_call(part: slice) -> object:
        return ours.apply_chat_template(
            conversations[part],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            processor_kwargs={"image_codes": codes[part], "padding": True},
        )

    result = {
        "cores": len(os.sched_getaffinity(0)),
        "vocabulary": len(tokenizer),
        "tokens_per_sample": len(ours_call(slice(0, 1))["input_ids"][0]),
        "processor(text, image_codes)": measure(ours_call, args.samples, args.batch_size),
        "the same, one sample a call": measure(ours_call, min(args.samples, 500), 1),
        "apply_chat_template with masks": measure(
            chat_call, min(args.samples, 500), args.batch_size
        ),
        "Chameleon, text alone": measure(peer_call, args.samples, args.batch_size),
        "image BPE alone": measure(
            lambda part: tokenizer.encode_codes(codes[part]), args.samples, args.batch_size
        ),
        "seconds to load": measure_loading(tokenizer, base),
    }
    if args.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        shown = (
            {key: round(number, 3) for key, number in value.items()}
            if isinstance(value, dict)
            else value
        )
        print(f"{name:36} {shown}")


if __name__ == "__main__":
    main()
