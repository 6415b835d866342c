"""checkpoint + test rows → the share of exact answers, and the weights of its image rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from ...data.conversations import parse_sample
from ...data.sources import iter_samples, open_samples
from ...evaluation.answering import check_new_tokens, generate_answers
from ...evaluation.scoring.exact import exact_match_scores
from ...files import read_weight_map
from .inputs import image_codes

_EMBEDDING = "model.embed_tokens.weight"


class TestRows:
    """Questions to score on, read once for all cells.

    Args:
        rows: file or data set; each row has one image and ends with the assistant's answer. A field `type`
            groups the scores.
        codes: code shards.
        index: a file for the index of the codes.
        limit: the first so many rows.
    """

    __test__ = False  # for pytest, which takes it for tests

    def __init__(self, rows: str, codes: tuple[str, ...], index: Path, limit: int | None = None):
        found: list[tuple[str, list[dict[str, Any]], str, str]] = []
        for number, where, row in iter_samples(open_samples(rows), limit):
            conversation = parse_sample(row, where=where, number=number)
            *prompt, last = conversation.messages
            ids, said = conversation.image_ids, [part.get("text") for part in last["content"]]
            if len(ids) != 1 or last["role"] != "assistant" or len(said) != 1 or said[0] is None:
                raise ValueError(
                    f"{where}: a row to score on must have one image and end with an answer in text"
                )
            found.append((ids[0], prompt, said[0], str(row.get("type", ""))))
        found.sort(key=lambda row: row[0])  # an image's questions together: it is read once
        columns: Any = ([row[column] for row in found] for column in range(4))
        self.image_ids, self.prompts, self.answers, self.groups = columns
        self.codes = image_codes(codes, index, self.image_ids, rows)[0]

    def __len__(self) -> int:
        return len(self.answers)

    def score(self, checkpoint: str, max_new_tokens: int, device: str, name: str) -> dict[str, Any]:
        """Greedy answers of a saved checkpoint: `metrics` in percent, and `tokens_per_image`."""
        processor = AutoProcessor.from_pretrained(checkpoint, vq=False)
        model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint)
        model.to(device).eval()
        check_new_tokens(model, max_new_tokens)
        prompts = [
            processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            for messages in self.prompts
        ]
        answers = generate_answers(
            model,
            processor,
            prompts,
            self.image_ids,
            self.codes,
            max_new_tokens=max_new_tokens,
            description=f"{name}: test",
        )
        groups = self.groups if any(self.groups) else None
        ids = processor.tokenizer.encode_codes(self.codes.values())
        return {
            "metrics": exact_match_scores(answers, self.answers, groups),
            "tokens_per_image": float(np.mean(list(map(len, ids)))),
        }


def image_row_weights(checkpoint: str | Path) -> tuple[np.ndarray, int]:
    """Mean absolute weight of the input embedding of each visual id, float32 (K + M,), and M: Figure 3b.

    Args:
        checkpoint: a folder; no more of it is read than these rows.
    """
    folder = Path(checkpoint)
    layout = AutoConfig.from_pretrained(folder).layout
    file = folder / "model.safetensors"
    if not file.exists():
        file = folder / read_weight_map(folder / "model.safetensors.index.json")[_EMBEDDING]
    with safe_open(file, "pt") as weights:
        rows = weights.get_slice(_EMBEDDING)[layout.first_code_id : layout.size]
    return rows.float().abs().mean(1).numpy(), layout.num_merges
