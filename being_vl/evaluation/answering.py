"""questions about images → answers, with the image of many questions read once.

Greedy generation from a cache: each image's part of the prompt goes through the model once, its keys and
values are copied to its questions, and `generate` goes on from there. The answers are those of `generate`
on the whole prompts.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from ..modeling_being_vl import BeingVLForCausalLM
from ..processing_being_vl import BeingVLProcessor


@torch.inference_mode()
def generate_answers(
    model: BeingVLForCausalLM,
    processor: BeingVLProcessor,
    prompts: Sequence[str],
    image_ids: Sequence[Hashable] | None = None,
    image_codes: Mapping[Hashable, Any] | None = None,
    *,
    batch_size: int = 256,
    max_new_tokens: int = 16,
    description: str = "answering",
) -> list[str]:
    """Answer prompts greedily; prompts about one image should stand next to each other.

    Args:
        model: in evaluation mode, on any device.
        processor: of the same checkpoint.
        prompts: texts of the chat template, each with one image placeholder, or with none if there are no
            images.
        image_ids: the image of each prompt.
        image_codes: image id → int (h, w) codes.
        batch_size: prompts at a time.
        max_new_tokens: after which an answer is cut.
        description: of the progress bar.

    Returns:
        a text for each prompt, special tokens left out.

    Raises:
        ValueError: `image_ids` has not one entry for each prompt, or comes without `image_codes`.
    """
    if (image_ids is None) != (image_codes is None):
        raise ValueError("image_ids and image_codes go together, got one of them")
    if image_ids is not None and len(image_ids) != len(prompts):
        raise ValueError(f"image_ids has {len(image_ids)} entries for {len(prompts)} prompts")
    answers: list[str] = []
    with tqdm(total=len(prompts), desc=description, unit="question") as bar:
        for start in range(0, len(prompts), batch_size):
            stop = min(start + batch_size, len(prompts))
            rows = processor(
                text=list(prompts[start:stop]),
                image_codes=None
                if image_ids is None or image_codes is None
                else [[image_codes[i]] for i in image_ids[start:stop]],
            )["input_ids"]
            owners = [None] * len(rows) if image_ids is None else list(image_ids[start:stop])
            ids, new_from = _continue(model, processor, rows, owners, max_new_tokens)
            answers += processor.batch_decode(ids[:, new_from:], skip_special_tokens=True)
            bar.update(stop - start)
    return answers


def _continue(
    model: BeingVLForCausalLM,
    processor: BeingVLProcessor,
    rows: Sequence[list[int]],
    owners: Sequence[Hashable],
    max_new_tokens: int,
) -> tuple[torch.Tensor, int]:
    """Generated ids (rows, length), and where in them the answers begin."""
    pad = processor.tokenizer.pad_token_id
    splits = [_prefix_length(row, processor.eoi_token_id) for row in rows]
    numbers = {owner: n for n, owner in enumerate(dict.fromkeys(owners))}
    prefixes: dict[Hashable, list[int]] = {}
    for row, split, owner in zip(rows, splits, owners, strict=True):
        prefixes.setdefault(owner, row[:split])
    prefix, prefix_mask = _left_padded(prefixes.values(), pad, model.device)
    suffix, suffix_mask = _left_padded(
        (row[split:] for row, split in zip(rows, splits, strict=True)), pad, model.device
    )
    positions = (prefix_mask.cumsum(1) - 1).clamp(min=0)
    cache = model(
        input_ids=prefix,
        attention_mask=prefix_mask,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
    ).past_key_values
    copies = torch.tensor([numbers[owner] for owner in owners], device=model.device)
    cache.batch_select_indices(copies)
    input_ids = torch.cat([prefix[copies], suffix], 1)
    ids = model.generate(
        input_ids=input_ids,
        attention_mask=torch.cat([prefix_mask[copies], suffix_mask], 1),
        past_key_values=cache,
        max_new_tokens=max_new_tokens,
        do_sample=False,
    )
    return ids, input_ids.shape[1]


def _prefix_length(row: Sequence[int], eoi_token_id: int) -> int:
    """Tokens up to the end of the last image; the first token where there is none."""
    for position in range(len(row) - 1, 0, -1):
        if row[position] == eoi_token_id:
            return position + 1
    return 1


def _left_padded(
    rows: Iterator[list[int]] | Any, pad: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, long (rows, length)."""
    rows = list(rows)
    length = max(map(len, rows))
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
