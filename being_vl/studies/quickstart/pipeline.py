"""The quickstart: easy-VQA's images and questions → a checkpoint that answers, by the commands of `being-vl`.

Each step prints the command line that does it. What is finished is not done again, so a run that was stopped
goes on when it is started again.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import transformers
from rich.console import Console

from ...evaluation.easyvqa import load_easyvqa
from ...evaluation.easyvqa_files import write_easyvqa
from ...evaluation.scoring.exact import exact_match_scores
from ...files import claim, load_results, locked, read_json
from ..commands import Commands, RunCommand, make_part
from ..easyvqa_parts import CODEBOOK_SIZE, fit_patch_quantizer, make_text_model, read_turns
from .report import TableRow, print_table, write_facts
from .settings import Settings

SETTINGS_FILE = "quickstart.json"
NUM_MERGES = 512
VQGAN_STEPS_PER_MINUTE = 500
MAX_ANSWER_TOKENS = 8


@dataclass(frozen=True)
class Variant:
    """A model of the table, scored after `sft`, and after `longer` again."""

    name: str
    folder: str
    num_merges: int  # of its vocabulary; 0 is LLM+VQ
    # Optimizer steps of each stage for each minute of `--minutes`: fixed, so that a seed has one result.
    pretrain: int
    sft: int
    longer: int = 0
    learning_rate: float = 2e-3  # the peak of `sft` and `longer`
    decay: float | None = (
        None  # share of `sft` in which the rate falls from its peak; else a cosine
    )


BPE = Variant(
    "LLM+VQ+BPE", "bpe", NUM_MERGES, pretrain=45, sft=415, longer=340, learning_rate=1e-3,
    decay=0.15,
)  # fmt: skip
VQ = Variant("LLM+VQ", "vq", 0, pretrain=14, sft=245)


def run(settings: Settings, run_command: RunCommand, console: Console | None = None) -> None:
    """Make everything that `settings` names in its output folder, and print the table."""
    load_easyvqa("test")  # a missing package is said before a folder is made
    folder = Path(settings.output)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / SETTINGS_FILE).exists():
        raise ValueError(f"--output {folder} is not empty and was not made by the quickstart")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with locked(folder, "another quickstart is running in it"):
        fixed = {k: v for k, v in asdict(settings).items() if k not in ("output", "rows")}
        claim(folder / SETTINGS_FILE, fixed, "choose another folder, or delete it to start anew")
        _Quickstart(settings, folder, run_command, console or Console()).run()


class _Quickstart:
    def __init__(self, settings: Settings, folder: Path, run_command: RunCommand, console: Console):
        self.settings, self.folder, self.console = settings, folder, console
        plain: Any = {"soft_wrap": True, "markup": False, "highlight": False}
        self.command = Commands(run_command, lambda line: console.print(f"\n$ {line}", **plain))
        self.data, self.train_json = folder / "easy-vqa", folder / "easy-vqa/train.json"
        self.vq_model, self.codes = folder / "vq_model", folder / "codes"
        self.text_model, self.checkpoint = folder / "text_model", folder / "checkpoint"
        self.table: list[TableRow] = []

    def run(self) -> None:
        self.console.rule("pixels → codes")
        seed = self.settings.seed
        make_part(self.data, lambda target: write_easyvqa(target, splits=["train"], seed=seed))
        self.fit_quantizer()
        self.command(
            "encode", **{
                "images": self.data / "images", "quantizer": self.vq_model, "output": self.codes,
                "device": self.settings.device, "batch-size": 100, "workers": 0,
            }, unless=self.codes / "manifest.json",
        )  # fmt: skip
        self.console.rule("a text-only Llama, instead of one that you have")
        questions, answers = read_turns(self.train_json)
        make_part(
            self.text_model,
            lambda target: make_text_model(questions, target, seed=seed, tokenizer_texts=answers),
        )
        self.console.rule("codes → merges → ids → answers")
        self.train_and_score(BPE)
        if "vq" in self.settings.rows:
            self.console.rule("the same without merges")
            self.train_and_score(VQ)
        if "question-only" in self.settings.rows:
            self.table.append(commonest_answers(seed))
            print_table(self.table, self.console)
        self.report()

    def fit_quantizer(self) -> None:
        """`vq_model/`: k-means of patches, or a VQ-GAN trained by `being-vl train-vq`."""
        images, seed = self.data / "images" / "train", self.settings.seed
        if self.settings.quantizer == "patch":
            self.console.print("k-means of the training images' patches", highlight=False)
            make_part(self.vq_model, lambda target: fit_patch_quantizer(images, target, seed=seed))
            return
        steps = max(10, round(VQGAN_STEPS_PER_MINUTE * self.settings.minutes))
        sizes = {
            "resolution": 64, "channel_multiplier": "[1,1,2]", "base_channels": 16,
            "num_res_blocks": 1, "latent_channels": 32, "embed_dim": 8,
            "num_embeddings": CODEBOOK_SIZE, "norm_num_groups": 4,
        }  # fmt: skip
        training = {
            "steps": steps, "batch-size": 4, "learning-rate": 4e-3,
            "warmup-steps": min(30, steps // 10), "autoencoder-fraction": 0.2, "seed": seed,
        }  # fmt: skip
        self.command(
            "train-vq", images=images, output=self.vq_model, device="cpu", **{"cache-images": True},
            **{f"model.{name}": value for name, value in sizes.items()},
            **{"losses.reconstruction": "l2", "losses.codebook": "ema", "losses.ema_decay": 0.97},
            **training, unless=self.vq_model / "metrics.json",
        )  # fmt: skip

    def train_and_score(self, variant: Variant) -> None:
        """A vocabulary, a checkpoint with it, its rows of ids, its stages; adds to the table."""
        folder, seed = self.folder / variant.folder, self.settings.seed
        bpe, start, rows = folder / "image_bpe", folder / "start", folder / "tokenized"
        self.command(
            "train-bpe", **{"codes": self.codes, "num-merges": variant.num_merges, "output": bpe},
            unless=bpe / "image_bpe.json",
        )  # fmt: skip
        self.command(
            "init", **{
                "base": self.text_model, "quantizer": self.vq_model, "bpe": bpe, "output": start,
                "image-init": "normal", "image-init-std": 0.1, "seed": seed,
                "chat-template": self.text_model / "chat_template.jinja",
            }, unless=start / "config.json",
        )  # fmt: skip
        self.command(
            "tokenize", checkpoint=start, data=self.train_json, codes=self.codes, output=rows,
            workers=0, unless=rows / "tokenize.yaml",
        )  # fmt: skip
        pretrained, tuned = folder / "pretrain", folder / "sft"
        rate = variant.learning_rate
        self.train(start, rows, pretrained, "pretrain", variant.pretrain)
        self.train(pretrained, rows, tuned, "sft", variant.sft, rate, variant.decay)
        self.score(variant.name, tuned, [pretrained, tuned])
        if variant is BPE:
            self.report(tuned)
        if variant.longer:
            longer = self.checkpoint
            self.train(tuned, rows, longer, "sft", variant.longer, rate)
            self.score(f"{variant.name}, longer", longer, [pretrained, tuned, longer])

    def train(
        self, checkpoint: Path, rows: Path, output: Path, stage: str, pace: int,
        learning_rate: float = 2e-3, decay: float | None = None,
    ) -> None:  # fmt: skip
        """`being-vl train`; docs/quickstart.md tells where the values come from."""
        steps = max(2, round(pace * self.settings.minutes))
        on_cpu = self.settings.device == "cpu"
        schedule: dict[str, object] = {"lr_scheduler_type": "cosine"}
        if decay is not None:
            schedule["lr_scheduler_type"] = "warmup_stable_decay"
            schedule["lr_scheduler_kwargs"] = json.dumps({"num_decay_steps": round(decay * steps)})
        self.command(
            "train", checkpoint=checkpoint, data=rows, output_dir=output, stage=stage,
            packing="shared_image", max_steps=steps, per_device_train_batch_size=8,
            learning_rate=learning_rate, **schedule, warmup_steps=0.05, adam_beta2=0.98, weight_decay=0.01,
            train_sampling_strategy="group_by_length", seed=self.settings.seed, logging_steps=200,
            save_steps=max(1, steps // 4), save_total_limit=1, use_cpu=on_cpu,
            dataloader_pin_memory=not on_cpu, unless=output / "metrics.json",
        )  # fmt: skip
        for superseded in output.glob("checkpoint-*"):
            shutil.rmtree(superseded)

    def score(self, name: str, checkpoint: Path, stages: list[Path]) -> None:
        """`being-vl eval`; adds a row to the table and prints it."""
        self.command(
            "eval", checkpoint, **{
                "tasks": "easyvqa", "device": self.settings.device, "batch-size": 256,
                "cache": self.folder / "cache", "max-new-tokens": MAX_ANSWER_TOKENS,
            }, unless=checkpoint / "evaluation" / "easyvqa.json",
        )  # fmt: skip
        (result,) = load_results(checkpoint)
        trained = [read_json(stage / "metrics.json") for stage in stages]
        steps, seconds = (sum(part[key] for part in trained) for key in ("steps", "train_runtime"))
        tokens = result.images["tokens_per_image"]
        self.table.append(TableRow(name, result.metrics, tokens, steps, seconds))
        print_table(self.table, self.console)

    def report(self, checkpoint: Path | None = None) -> None:
        """The card and the image of the checkpoint, by `being-vl card`."""
        checkpoint = checkpoint or self.checkpoint
        test = load_easyvqa("test")
        write_facts(checkpoint, self.settings, self.table, test.questions[0].text)
        image = test.image_paths[test.questions[0].image_id]
        self.command("card", checkpoint, image=image)
        self.console.print(
            f"image: {checkpoint / 'tokens.png'}\ntry it: being-vl chat {checkpoint}"
        )


def commonest_answers(seed: int) -> TableRow:
    """The best that can be done without looking: to each question its commonest training answer."""
    said: dict[str, Counter[str]] = defaultdict(Counter)
    for question in load_easyvqa("train", seed=seed).questions:
        said[question.text][question.answer] += 1
    overall = sum(said.values(), Counter())
    test = load_easyvqa("test").questions
    answers = [(said.get(q.text) or overall).most_common(1)[0][0] for q in test]
    truths, groups = [q.answer for q in test], [q.group for q in test]
    return TableRow("question only", exact_match_scores(answers, truths, groups), 0.0, 0, 0.0)
