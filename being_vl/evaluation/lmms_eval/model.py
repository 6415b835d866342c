"""lmms-eval's requests → answers: `python -m lmms_eval --model being_vl --model_args pretrained=…`.

Source: the class `lmms` of lmms-eval 0.7, in its chat form. It differs from the models that come with lmms-eval in
that images are quantized before, once, and kept on disk, and that the questions about an image share its part
of the prompt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from tqdm.auto import tqdm

from ..answering import iter_answers
from ..code_cache import BATCH_SIZE, CodeCache
from ..runner import load_checkpoint
from ..tasks import strip_punctuation
from .requests import cut_at, generation_options, read_messages


class BeingVL(lmms):
    """A Being-VL checkpoint in lmms-eval.

    Args:
        pretrained: folder, or repository on the Hub.
        device: by default accelerate's: a GPU for each process, or the CPU.
        dtype: of the weights: auto (as saved), float32, bfloat16 or float16.
        cache: folder of codes; by default `$BEING_VL_CACHE`, or beside the Hub's cache.
        max_batch_size: lmms-eval passes it; not used.

    Raises:
        ValueError, OSError: the checkpoint does not load, or the batch size is no number.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
        cache: str | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}")
        self.batch_size = int(batch_size)
        self.accelerator = Accelerator(cpu=device == "cpu")
        self._model, self.processor = load_checkpoint(str(pretrained), device=device, dtype=dtype)
        self._codes = CodeCache(self.processor, cache)
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes

    @property
    def device(self) -> torch.device:
        return self._model.device

    @property
    def model(self) -> Any:
        return self._model

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """An answer for each request, in order; one-word answers lose the punctuation around them."""
        prompts, grids = self._read(requests)
        groups: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[repr(sorted(request.args[2].items(), key=str))].append(number)
        answers = [""] * len(requests)
        with self._bar(len(requests), "answering", "question") as bar:
            for numbers in groups.values():
                options = generation_options(requests[numbers[0]].args[2])
                # Questions about one image side by side, so that they share its part of the prompt.
                numbers.sort(key=lambda n: [grid.tobytes() for grid in grids[n]])
                batches = iter_answers(
                    self._model,
                    self.processor,
                    [prompts[n] for n in numbers],
                    numbers,
                    dict(enumerate(grids)),
                    batch_size=self.batch_size,
                    **options,
                )
                left = iter(numbers)
                for batch in batches:
                    for text in batch:
                        n = next(left)
                        answers[n] = self._finished(requests[n], text)
                    bar.update(len(batch))
        return answers

    def _read(self, requests: Sequence[Instance]) -> tuple[list[str], list[list[np.ndarray]]]:
        """Prompts, and the codes of each one's images; a batch of images in memory at a time."""
        prompts: list[str] = []
        grids: list[list[np.ndarray]] = []
        with self._bar(len(requests), "quantizing", "question") as bar:
            for start in range(0, len(requests), BATCH_SIZE):
                batch = [self._conversation(r) for r in requests[start : start + BATCH_SIZE]]
                codes = iter(self._codes.codes([image for _, images in batch for image in images]))
                prompts += [prompt for prompt, _ in batch]
                grids += [[next(codes) for _ in images] for _, images in batch]
                bar.update(len(batch))
        return prompts, grids

    def _conversation(self, request: Instance) -> tuple[str, list[Any]]:
        _, doc_to_messages, _, doc_id, task, split = request.args
        return read_messages(self.processor, doc_to_messages(self.task_dict[task][split][doc_id]))

    def _finished(self, request: Instance, text: str) -> str:
        context, _, options, *_ = request.args
        answer = strip_punctuation(cut_at(text, options.get("until")))
        self.cache_hook.add_partial("generate_until", (context, options), answer)
        return answer

    def _bar(self, total: int, description: str, unit: str) -> tqdm:
        return tqdm(total=total, desc=description, unit=unit, disable=self.rank != 0)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError(
            "being_vl answers in generated text: choose a generate_until task"
        )

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise NotImplementedError("being_vl answers one round: choose a generate_until task")
