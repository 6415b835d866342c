"""Speed of `being-vl tokenize`: rows and tokens a CPU second of one process.

    python benchmarks/tokenize_data.py

Rows of three turns about one image of 32×32 codes, with a small tokenizer and random merges, so that an
image keeps nearly all of its 1,024 tokens. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from transformers import LlamaConfig, LlamaForCausalLM

from being_vl import BeingVLPatchVQConfig, BeingVLPatchVQModel, ImageBPE
from being_vl.codes.shards import ShardInfo, write_shard
from being_vl.data import TokenizeSettings, open_samples, tokenize_samples
from being_vl.hub.checkpoint import init_checkpoint
from being_vl.studies.quickstart.text_model import train_text_tokenizer

CODES, SIDE, IMAGES = 256, 32, 400
QUESTION = "what is in the picture, and why is it where it is? " * 2
ANSWER = "it is a red circle above a blue rectangle, since someone drew it there. " * 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1200)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    grids = list(rng.integers(0, CODES, (IMAGES, SIDE, SIDE)))
    bpe = ImageBPE.train(grids, num_merges=256, codebook_size=CODES)
    text_tokenizer = train_text_tokenizer([QUESTION, ANSWER])
    config = LlamaConfig(
        vocab_size=len(text_tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    vq_model = BeingVLPatchVQModel(BeingVLPatchVQConfig(num_embeddings=CODES))
    _, processor = init_checkpoint(LlamaForCausalLM(config), text_tokenizer, vq_model, bpe)
    turns = [("human", f"<image>\n{QUESTION}"), ("gpt", ANSWER)] + 2 * [
        ("human", QUESTION),
        ("gpt", ANSWER),
    ]
    rows = [
        {"image": f"{i % IMAGES}", "conversations": [{"from": who, "value": v} for who, v in turns]}
        for i in range(args.rows)
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows.json").write_text(json.dumps(rows))
        info = ShardInfo(codebook_size=CODES)
        write_shard(folder / "codes.parquet", [f"{i}" for i in range(IMAGES)], grids, info)
        seconds, counts = [], {}
        for attempt in range(2):  # the first one compiles
            started = time.process_time()
            counts = tokenize_samples(
                open_samples(str(folder / "rows.json")),
                processor,
                folder / f"out{attempt}",
                TokenizeSettings(source="benchmark"),
                checkpoint="",
                codes=[str(folder / "codes.parquet")],
            )["counts"]
            seconds.append(time.process_time() - started)
    print(
        json.dumps(
            {
                "rows": counts["samples"],
                "tokens_per_row": round(counts["tokens"] / counts["samples"]),
                "image_tokens_per_row": round(counts["image_tokens"] / counts["samples"]),
                "cpu_seconds": round(seconds[-1], 2),
                "rows_per_cpu_second": round(counts["samples"] / seconds[-1]),
                "tokens_per_cpu_second": round(counts["tokens"] / seconds[-1]),
            }
        )
    )


if __name__ == "__main__":
    main()
