"""easy-VQA → a task of lmms-eval, from the package easy-vqa and without a network.

Source: lmms-eval's class for tasks; it differs in that the data come from a Python package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset, DatasetDict, Features, Image, Value
from lmms_eval.api.task import ConfigurableMessagesTask

from ..scoring.exact import normalize_answer
from ..tasks import load_task


class EasyVQA(ConfigurableMessagesTask):
    """The questions of the official test split, in the order of `being-vl eval --tasks easyvqa`."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config={name: value for name, value in config.items() if name != "class"})

    def download(self, dataset_kwargs: Mapping[str, Any] | None = None) -> None:
        """Take the data from the package."""
        examples = load_task("easyvqa").examples
        columns = {
            "question_id": [example.id for example in examples],
            "question": [example.question for example in examples],
            "answer": [example.target for example in examples],
            "type": [example.group for example in examples],
        }
        features = Features({name: Value("string") for name in columns})
        without = Dataset.from_dict(columns, features=features)
        self.dataset_no_image = DatasetDict(test=without)
        columns["image"] = [example.image for example in examples]
        whole = Dataset.from_dict(columns, features=Features({**features, "image": Image()}))
        self.dataset = DatasetDict(test=whole)


def doc_to_visual(doc: Mapping[str, Any]) -> list[Any]:
    return [doc["image"].convert("RGB")]


def process_results(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """1 or 0, over all and under the question's type."""
    hit = float(normalize_answer(results[0]) == normalize_answer(doc["answer"]))
    return {"accuracy": hit, f"accuracy_{doc['type']}": hit}
