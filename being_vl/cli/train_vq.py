"""`being-vl train-vq`: pictures → a VQ-GAN.

The recipes under hub_configs/vq/ are configurations of this command. An interrupted run continues from its
last whole checkpoint with `--resume true`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from ._image_source import add_source_arguments, open_source

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from ..quantizers.image_processing_being_vl import BeingVLImageProcessor
    from ..training.vq.run import VQTrainer, VQTrainingArguments

_CONFIG_FILE = "train_vq.yaml"
# What a continued run may not change: it would be another run.
_FIXED = ("model", "losses", "training", "random_flip", "random_crop", "perceptual_backbone")


def make_parser() -> ArgumentParser:
    """The options of the command."""
    from ..quantizers.modeling_being_vl_vq import BeingVLVQConfig
    from ..training.vq.module import VQLossConfig

    parser = ArgumentParser(
        description="Train a VQ-GAN on images; OUTPUT gets model, image processor and metrics."
    )
    parser.add_argument("--config", action="config", help="YAML file of these options")
    parser.add_argument("--output", type=str, required=True, help="folder of the model")
    parser.add_argument(
        "--resume", type=bool, default=False, help="continue from the last whole checkpoint"
    )
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON")
    add_source_arguments(parser, streams=False)
    data = parser.add_argument_group("data")
    data.add_argument("--eval-images", type=str, help="folder of images to measure on")
    data.add_argument(
        "--eval-count",
        type=PositiveInt,
        help="without --eval-images: hold out so many images, taken evenly from the source",
    )
    data.add_argument("--cache", type=bool, default=False, help="keep all pixels in memory")
    data.add_argument("--random-flip", type=bool, default=False, help="mirror at random")
    data.add_argument("--random-crop", type=PositiveInt, help="side of a random square, in pixels")
    data.add_argument("--workers", type=NonNegativeInt, default=2, help="processes that decode")
    parser.add_class_arguments(
        BeingVLVQConfig,
        "model",
        skip=set(_inherited_fields(BeingVLVQConfig)),
        help="sizes of the model (BeingVLVQConfig)",
    )
    parser.add_class_arguments(VQLossConfig, "losses", help="what is minimised (VQLossConfig)")
    _add_training_arguments(parser)
    metrics = parser.add_argument_group("metrics and judges")
    metrics.add_argument("--ssim", type=bool, default=True, help="measure SSIM (torchmetrics)")
    metrics.add_argument(
        "--rfid-weights", type=str, help="file of torch-fidelity's Inception weights: measure rFID"
    )
    metrics.add_argument(
        "--perceptual-backbone", type=str, help="torchvision:NAME or timm:NAME, such as timm:vgg16"
    )
    metrics.add_argument("--perceptual-weights", type=str, help="file of the backbone's weights")
    return parser


def _add_training_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--training.steps", type=PositiveInt, default=100_000, help="steps of the optimizer")
    add("--training.batch_size", type=PositiveInt, default=8, help="images in a step, per device")
    add("--training.gradient_accumulation", type=PositiveInt, default=1, help="batches in a step")
    add("--training.learning_rate", type=PositiveFloat, default=1e-4, help="its peak")
    add("--training.discriminator_learning_rate", type=PositiveFloat, help="default: the same")
    add("--training.warmup_steps", type=NonNegativeInt, default=0, help="steps to the peak")
    add(
        "--training.schedule",
        type=Literal["cosine", "constant_with_warmup", "linear"],
        default="cosine",
        help="of the learning rate after the warmup",
    )
    add("--training.adam_beta1", type=NonNegativeFloat, default=0.9)
    add("--training.adam_beta2", type=NonNegativeFloat, default=0.95)
    add("--training.weight_decay", type=NonNegativeFloat, default=0.0)
    add("--training.max_grad_norm", type=NonNegativeFloat, default=1.0, help="0: no clipping")
    add(
        "--training.autoencoder_fraction",
        type=NonNegativeFloat,
        default=0.1,
        help="share of the steps before k-means makes the codebook and quantization begins",
    )
    add("--training.seed", type=NonNegativeInt, default=0)
    add("--precision", type=Literal["float32", "bfloat16"], default="float32", help="autocast")
    add("--device", type=Literal["auto", "cpu"], default="auto", help="auto: a GPU if there is one")
    add("--save-every", type=NonNegativeInt, default=0, help="steps; 0: no checkpoints")
    add("--save-limit", type=PositiveInt, default=2, help="checkpoints kept")
    add("--eval-every", type=NonNegativeInt, default=0, help="steps; 0: at the end alone")
    add("--log-every", type=PositiveInt, default=50, help="steps")
    add("--report-to", type=str, default="none", help="tensorboard, wandb, trackio …")


def main(args: Namespace) -> int:
    """Run the command.

    Raises:
        ValueError: bad options, an unreadable image, a folder that holds another run.
        OSError: another process trains into the folder.
        ImportError: an optional library is asked for and not installed.
    """
    from accelerate import PartialState

    from ..files import locked

    output = Path(args.output)
    state = PartialState(cpu=args.device == "cpu")
    own_lock = f".rank-{state.process_index:05d}.lock"
    with locked(output, "another process is training into it", name=own_lock):
        if state.is_main_process:
            _claim(args, output)
        state.wait_for_everyone()
        trainer, processor = _make_trainer(args, output)
        started = time.perf_counter()
        trainer.train(resume_from_checkpoint="auto" if args.resume else None)
        seconds = time.perf_counter() - started
        metrics = trainer.evaluate() if trainer.eval_dataset is not None else {}
        if state.is_main_process:
            trainer.vq_model.save_pretrained(output)
            processor.save_pretrained(output)
            result = {**metrics, "steps": trainer.state.global_step, "seconds": round(seconds, 1)}
            _report(args, output, result)
    return 0


def _inherited_fields(config_class: type) -> list[str]:
    """Fields of every model's configuration, which say nothing about the sizes of this one."""
    import dataclasses

    own = config_class.__annotations__
    return [field.name for field in dataclasses.fields(config_class) if field.name not in own]


def _claim(args: Namespace, output: Path) -> None:
    """Save the configuration; refuse a folder with another run in it."""
    import yaml

    from ..files import refuse_others, write_atomic

    path = output / _CONFIG_FILE
    text = make_parser().dump(args)
    if path.exists():
        if not args.resume:
            raise ValueError(
                f"{output}: a run is there already; --resume true continues it, or choose another output"
            )
        found, wanted = yaml.safe_load(path.read_text()), yaml.safe_load(text)
        refuse_others(path, found, wanted, _FIXED, "a run continues with what it began with")
    write_atomic(path, text.encode())


def _make_trainer(args: Namespace, output: Path) -> tuple[VQTrainer, BeingVLImageProcessor]:
    from transformers import set_seed

    from ..hub.checkpoint import default_image_processor
    from ..quantizers.metrics import PixelScale, ReconstructionMetrics, inception_network
    from ..quantizers.modeling_being_vl_vq import BeingVLVQConfig, BeingVLVQModel
    from ..training.vq.losses import load_perceptual_loss
    from ..training.vq.module import VQLossConfig, VQTrainingModule
    from ..training.vq.run import ProgressBar, VQTrainer

    config = BeingVLVQConfig(**args.model.as_dict())
    processor = default_image_processor(config)
    training = _training_arguments(args, output)
    train, evaluation = _datasets(args, processor)
    perceptual = None
    if args.perceptual_backbone is not None:
        perceptual = load_perceptual_loss(args.perceptual_backbone, args.perceptual_weights)
    inception = None if args.rfid_weights is None else inception_network(args.rfid_weights)
    scale = PixelScale.of(processor)

    def empty_metrics() -> ReconstructionMetrics:
        return ReconstructionMetrics(
            config.num_embeddings,
            scale,
            ssim=args.ssim,
            fid_network=inception,
            device=training.device,
        )

    empty_metrics()  # what is missing is said now, not after the training
    set_seed(training.seed)
    module = VQTrainingModule(
        BeingVLVQModel(config), VQLossConfig(**args.losses.as_dict()), perceptual
    )
    trainer = VQTrainer(
        module,
        training,
        train_dataset=train,
        eval_dataset=evaluation,
        scale=scale,
        metrics=empty_metrics,
        callbacks=[ProgressBar()],
    )
    return trainer, processor


def _training_arguments(args: Namespace, output: Path) -> VQTrainingArguments:
    from ..training.vq.run import VQTrainingArguments

    training = args.training
    return VQTrainingArguments(
        output_dir=str(output),
        max_steps=training.steps,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=training.learning_rate,
        discriminator_learning_rate=training.discriminator_learning_rate,
        warmup_steps=training.warmup_steps,
        lr_scheduler_type=training.schedule,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        autoencoder_fraction=training.autoencoder_fraction,
        seed=training.seed,
        random_flip=args.random_flip,
        random_crop=args.random_crop,
        bf16=args.precision == "bfloat16",
        use_cpu=args.device == "cpu",
        dataloader_num_workers=0 if args.cache else args.workers,
        dataloader_pin_memory=args.device != "cpu",
        save_strategy="steps" if args.save_every else "no",
        save_steps=args.save_every or 1,
        save_total_limit=args.save_limit,
        eval_strategy="steps" if args.eval_every else "no",
        eval_steps=args.eval_every or None,
        logging_steps=args.log_every,
        report_to=args.report_to,
        disable_tqdm=True,
    )


def _datasets(args: Namespace, processor: BeingVLImageProcessor) -> tuple[Dataset, Dataset | None]:
    from ..data.quantizing import DatasetSource, FolderSource
    from ..training.vq.data import SourceImages

    source = open_source(args, shard_size=1)
    assert isinstance(source, FolderSource | DatasetSource)  # the parser offers no streams
    held_out: list[int] = []
    if args.eval_images is None and args.eval_count is not None:
        if args.eval_count >= source.num_images:
            raise ValueError(
                f"--eval-count must be less than the {source.num_images} images, got {args.eval_count}"
            )
        held_out = [i * source.num_images // args.eval_count for i in range(args.eval_count)]
    kept = sorted(set(range(source.num_images)) - set(held_out))
    train: Any = SourceImages(
        source,
        processor,
        indices=kept,
    )
    evaluation: Any = None
    if args.eval_images is not None:
        evaluation = SourceImages(FolderSource(args.eval_images, shard_size=1), processor)
    elif held_out:
        evaluation = SourceImages(source, processor, indices=held_out)
    if args.cache:
        train = train.cached()
        evaluation = evaluation and evaluation.cached()
    return train, evaluation


def _report(args: Namespace, output: Path, result: dict[str, Any]) -> None:
    from ..files import write_atomic

    write_atomic(output / "metrics.json", json.dumps(result, indent=1).encode())
    if args.json:
        print(json.dumps(result))
    else:
        shown = ", ".join(
            f"{name.removeprefix('eval_')} {value:.4g}"
            for name, value in result.items()
            if isinstance(value, (int, float))
        )
        print(f"{output}: {shown}", file=sys.stderr)
