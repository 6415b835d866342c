"""questions about images → answers; an image that questions share passes through the model once.

Generation from a cache: each image's part of the prompt goes through the model once, its keys and values are
copied to its questions, and `generate` goes on from there. The answers are those of `generate`
on the whole prompts.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from tqdm.auto import tqdm

from ..files import shown
from ..models.modeling_being_vl import BeingVLLanguageModel
from ..processing.grid_inputs import nested_codes
from ..processing.processing_being_vl import BeingVLProcessor

# What bases bring along in generation_config.json (Qwen2's repetition_penalty of 1.05) would decode otherwise than
# is said; beams need another cache.
_PLAIN = {"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0}


def render_prompts(
    processor: BeingVLProcessor, questions: Sequence[str], *, image: bool
) -> list[str]:
    """Questions → prompts of the chat template, each with its image before it if `image`."""
    content = [{"type": "image"}] if image else []

    @cache
    def render(question: str) -> str:
        messages: list[Any] = [
            {"role": "user", "content": [*content, {"type": "text", "text": question}]}
        ]
        return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    return [render(question) for question in questions]


def check_new_tokens(model: BeingVLLanguageModel, max_new_tokens: int) -> None:
    """Raises ValueError for more tokens than the longest sequence of the model has."""
    longest = model.config.max_position_embeddings
    if max_new_tokens > longest:
        raise ValueError(
            f"max_new_tokens must be at most {longest}, the model's longest sequence, got {shown(max_new_tokens)}"
        )


def generate_answers(
    model: BeingVLLanguageModel,
    processor: BeingVLProcessor,
    prompts: Sequence[str],
    *args: Any,
    description: str = "answering",
    **options: Any,
) -> list[str]:
    """A text for each prompt, with a progress bar: all batches of [`iter_answers`], whose arguments it takes."""
    answers: list[str] = []
    with tqdm(total=len(prompts), desc=description, unit="question") as bar:
        for batch in iter_answers(model, processor, prompts, *args, **options):
            answers += batch
            bar.update(len(batch))
    return answers


def iter_answers(
    model: BeingVLLanguageModel,
    processor: BeingVLProcessor,
    prompts: Sequence[str],
    image_ids: Sequence[Hashable] | None = None,
    image_codes: Mapping[Any, Any] | None = None,
    *,
    batch_size: int = 256,
    max_new_tokens: int = 16,
    do_sample: bool = False,
    **generation: Any,
) -> Iterator[list[str]]:
    """Answer prompts batch by batch, greedily unless told otherwise.

    Args:
        model: in evaluation mode.
        prompts: texts of the chat template; those about one image should stand next to each other.
        image_ids: what names the images of each prompt in `image_codes`.
        image_codes: int (h, w) codes of the prompt's one image, or a list of such, in the order of its
            placeholders. Neither of the two where no prompt has images.
        generation: further options of `generate`; what they leave out of penalties, beams and least lengths
            is neutral, whatever the checkpoint's generation_config.json says.

    Yields:
        the texts of a batch, in order, special tokens left out.

    Raises:
        ValueError: images without names or names without images, or a prompt that is longer than the model takes.
    """
    if (image_ids is None) != (image_codes is None):
        raise ValueError("image_ids and image_codes go together, got one of them")
    if image_ids is not None and len(image_ids) != len(prompts):
        raise ValueError(f"image_ids has {len(image_ids)} entries for {len(prompts)} prompts")
    generation = {**_PLAIN, **generation, "max_new_tokens": max_new_tokens, "do_sample": do_sample}
    for start in range(0, len(prompts), batch_size):
        stop = min(start + batch_size, len(prompts))
        grids = None
        if image_ids is not None and image_codes is not None:
            grids = [nested_codes(image_codes[i]) for i in image_ids[start:stop]]
        rows = processor(text=list(prompts[start:stop]), image_codes=grids)["input_ids"]
        limit = model.config.max_position_embeddings
        for number, row in enumerate(rows, start):
            if len(row) > limit:
                raise ValueError(
                    f"prompt {number} has {len(row)} tokens, the model takes {limit}: a question, or the chat template, "
                    "is too long"
                )
        ids, new_from = _generate(model, processor, rows, generation)
        yield processor.batch_decode(ids[:, new_from:], skip_special_tokens=True)


@torch.inference_mode()
def _generate(
    model: BeingVLLanguageModel,
    processor: BeingVLProcessor,
    rows: Sequence[list[int]],
    generation: Mapping[str, Any],
) -> tuple[torch.Tensor, int]:
    """Generated ids (rows, length), and where in them the answers begin."""
    pad = processor.tokenizer.pad_token_id or 0  # the masks say that nobody reads it
    if generation.get("num_beams", 1) > 1:  # beams reorder the cache of whole prompts alone
        ids, mask = _left_padded(rows, pad, model.device)
        return model.generate(input_ids=ids, attention_mask=mask, **generation), ids.shape[1]
    splits = [_prefix_length(row, processor.eoi_token_id) for row in rows]
    parts = [(row[:split], row[split:]) for row, split in zip(rows, splits, strict=True)]
    prefixes = [tuple(prefix) for prefix, _ in parts]
    numbers = {prefix: n for n, prefix in enumerate(dict.fromkeys(prefixes))}
    prefix, prefix_mask = _left_padded(list(map(list, numbers)), pad, model.device)
    suffix, suffix_mask = _left_padded([suffix for _, suffix in parts], pad, model.device)
    positions = (prefix_mask.cumsum(1) - 1).clamp(min=0)
    past = model(  # type: ignore[operator]
        input_ids=prefix,
        attention_mask=prefix_mask,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
    ).past_key_values
    copies = torch.tensor([numbers[prefix] for prefix in prefixes], device=model.device)
    past.batch_select_indices(copies)
    input_ids = torch.cat([prefix[copies], suffix], 1)
    ids = model.generate(
        input_ids=input_ids,
        attention_mask=torch.cat([prefix_mask[copies], suffix_mask], 1),
        past_key_values=past,
        **generation,
    )
    return ids, input_ids.shape[1]


def _prefix_length(row: Sequence[int], eoi_token_id: int) -> int:
    """Tokens up to the end of the last image; the first token where there is none."""
    for position in range(len(row) - 1, 0, -1):
        if row[position] == eoi_token_id:
            return position + 1
    return 1


def _left_padded(
    rows: Sequence[list[int]], pad: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, long (rows, length)."""
    length = max(map(len, rows))
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
