"""easy-VQA → the example checkpoint of the package, `being_vl.example_checkpoint()`.

The quickstart's LLM+VQ+BPE, saved in float16 and scored again.

    python experiments/example_checkpoint.py --work being-vl-quickstart --output being_vl/demo/example
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from being_vl.cli import run_command
from being_vl.evaluation.easyvqa import load_easyvqa
from being_vl.files import write_atomic
from being_vl.hub.checkpoint import save_checkpoint
from being_vl.hub.facts import FACTS_FILE, CardFacts
from being_vl.models.loading import load_language_model
from being_vl.processing.processing_being_vl import BeingVLProcessor
from being_vl.studies.commands import Commands

FACTS = CardFacts(
    title="being_vl: the example checkpoint",
    summary="A small Llama that answers questions about 64×64 drawings of one coloured shape. It is part of the package: "
    "`being_vl.example_checkpoint()` is its folder.",
    language=["en"],
    question="what color is the shape?",
    max_new_tokens=8,
    vq_source="k-means of the patches of easy-VQA's training images",
    training="`python experiments/example_checkpoint.py`: LLM+VQ+BPE of `being-vl quickstart` with seed 0, trained on the "
    "training questions of [easy-VQA](https://github.com/vzhou842/easy-VQA). Weights are stored in float16.",
    limits="It knows the thirteen answers of easy-VQA and drawings of one shape; its answers about other images mean "
    "nothing. It was not trained to draw.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--work", type=Path, default=Path("being-vl-quickstart"))
    parser.add_argument("--output", type=Path, default=Path("being_vl/demo/example"))
    options = parser.parse_args()
    trained, output = options.work / "checkpoint", options.output
    command = Commands(run_command)
    command("quickstart", output=options.work, rows="[bpe]", unless=trained / "evaluation/easyvqa.json")  # fmt: skip

    if output.exists():
        shutil.rmtree(output)
    model = load_language_model(str(trained), dtype="float16")
    save_checkpoint(model, BeingVLProcessor.from_pretrained(str(trained)), str(output))
    command("eval", output, tasks="easyvqa", device="cpu", **{"batch-size": 256, "max-new-tokens": 8})  # fmt: skip
    write_atomic(output / FACTS_FILE, FACTS.to_yaml())
    test = load_easyvqa("test")
    command("card", output, image=test.image_paths[test.questions[0].image_id])
    for made in (*output.glob("evaluation/*.answers.jsonl"), *output.glob("evaluation/*.yaml")):
        made.unlink()


if __name__ == "__main__":
    main()
