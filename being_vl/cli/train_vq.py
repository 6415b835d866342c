"""`being-vl train-vq`: images → a quantizer.

The recipes under hub_configs/vq/ are configurations of this command. Run again after an
interruption, it continues from its last whole checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from ..files import locked, read_yaml, refuse_others, wait_for_everyone, write_atomic, writing
from .options import add, add_source, answer, flag, open_source, option, options, refuse_used
from .parsing import Parser

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from ..quantizers.image_processing_being_vl import BeingVLImageProcessor
    from ..training.vq.trainer import VQTrainer, VQTrainingArguments

_CONFIG_FILE = "train-vq.yaml"
_OLD_CONFIG_FILE = "train_vq.yaml"  # a folder that was begun with it keeps it
# What a continued run may not change: it would be another run.
_FIXED = (
    "kind", "resolution", "model", "losses", "steps", "batch_size", "gradient_accumulation", "learning_rate",
    "discriminator_learning_rate", "warmup_steps", "schedule", "adam_beta1", "adam_beta2", "weight_decay",
    "max_grad_norm", "autoencoder_fraction", "seed", "random_flip", "random_crop", "perceptual_backbone",
)  # fmt: skip
# What `TrainingArguments` call by the same name.
_OF_TRAINER = (
    "learning_rate", "discriminator_learning_rate", "warmup_steps", "adam_beta1", "adam_beta2", "weight_decay",
    "max_grad_norm", "autoencoder_fraction", "seed", "random_flip", "random_crop", "report_to",
)  # fmt: skip

# What `--kind patch`, which fits k-means to whole images, has no use for.
_OF_STEPS = (
    "steps", "batch_size", "dtype", "gradient_accumulation", "schedule", "save_every", "eval_every", "save_limit",
    "log_every", "rfid_weights", "perceptual_backbone", "perceptual_weights",
    *(name for name in _OF_TRAINER if name != "seed"),
)  # fmt: skip


def make_parser() -> Parser:
    from ..quantizers.configuration_being_vl_vq import BeingVLVQConfig
    from ..training.vq.module import VQLossConfig

    parser = make_help_parser()
    sizes = _own_fields(BeingVLVQConfig)
    parser.rare_class(sizes, "model", "sizes of the model (BeingVLVQConfig)")
    parser.rare_class(VQLossConfig, "losses", "what is minimised (VQLossConfig)")
    return parser


def make_help_parser() -> Parser:
    """The options without those of the model and its losses, whose classes take seconds to import."""
    parser = Parser(
        "Train a quantizer on images; OUTPUT gets model, image processor and metrics. Sizes and losses are best "
        "taken from a file under hub_configs/vq/; as options they are --model.X and --losses.X.",
        json="print the metrics as JSON",
    )
    add(parser, "output", help="folder of the model", required=True)
    add(parser, "resume")
    add_source(parser, streams=False)
    data = parser.add_argument_group("data and quantizer")
    option(data, "eval-images", str, "images to measure on", metavar="FOLDER")
    option(data, "eval-count", PositiveInt, "or: hold out so many of the source")
    add(data, "workers", default=2, help="processes that decode images")
    kind = parser.add_argument_group(
        "quantizer", "with defaults by --resolution, but for --model.X"
    )
    options(
        kind,
        ("kind", Literal["patch", "vqgan", "fsq", "lfq"], "vqgan", "patch (k-means) takes a minute"),
        ("resolution", PositiveInt, None, "pixels a side; default: 256"),
    )  # fmt: skip
    training = parser.add_argument_group("training")
    option(training, "steps", PositiveInt, "default: by --resolution")
    option(training, "batch-size", PositiveInt, "images, per device")
    add(training, "seed", "device")
    add(training, "dtype", default="float32", help="autocast: float32 or bfloat16")
    _add_rare(parser)
    return parser


def _add_rare(parser: Parser) -> None:
    data = parser.rare("augmentation")
    flag(data, "random-flip", "mirror at random")
    option(data, "random-crop", PositiveInt, "side of a random square, in pixels")
    flag(data, "cache-images", "keep all pixels in memory")
    optimizer = parser.rare("optimizer")
    schedules = Literal["cosine", "constant_with_warmup", "linear"]
    options(
        optimizer,
        ("learning-rate", PositiveFloat, None, "peak; default: by --resolution"),
        ("gradient-accumulation", PositiveInt, 1, "batches in a step"),
        ("discriminator-learning-rate", PositiveFloat, None, "default: the same"),
        ("warmup-steps", NonNegativeInt, 0, "steps to the peak"),
        ("schedule", schedules, "cosine", "of the learning rate after the warmup"),
        ("adam-beta1", NonNegativeFloat, 0.9, "of AdamW"),
        ("adam-beta2", NonNegativeFloat, 0.95, "of AdamW"),
        ("weight-decay", NonNegativeFloat, 0.0, "of AdamW"),
        ("max-grad-norm", NonNegativeFloat, 1.0, "0: no clipping"),
        ("autoencoder-fraction", NonNegativeFloat, 0.1, "share of the steps before quantization begins"),
        ("save-every", NonNegativeInt, 0, "steps between checkpoints; 0: none"),
        ("eval-every", NonNegativeInt, 0, "steps; 0: at the end alone"),
        ("save-limit", PositiveInt, 2, "checkpoints kept"),
        ("log-every", PositiveInt, 50, "steps between logs"),
        ("report-to", str, "none", "tensorboard, wandb, trackio …"),
    )  # fmt: skip
    metrics = parser.rare("metrics and judges")
    flag(metrics, "ssim", "measure SSIM (torchmetrics)", default=True)
    add(metrics, "rfid-weights")
    option(metrics, "perceptual-backbone", str, "torchvision:NAME or timm:NAME, such as timm:vgg16")
    option(metrics, "perceptual-weights", str, "weights of the backbone", metavar="FILE")


def main(args: Namespace) -> int:
    from accelerate import PartialState

    chosen = _resolve(args)
    output = Path(args.output)
    state = PartialState(cpu=args.device == "cpu")
    own_lock = f".rank-{state.process_index:05d}.lock"
    with locked(output, "another process is training into it", name=own_lock):
        if state.is_main_process:
            _claim(args, output)
        wait_for_everyone(state)
        if args.kind == "patch":
            if state.is_main_process:
                _fit_patches(args, chosen, output)
            return 0
        trainer, processor = _make_trainer(args, chosen, output)
        started = time.perf_counter()
        with contextlib.redirect_stdout(sys.stderr):  # progress and logs
            trainer.train(resume_from_checkpoint="auto")
        seconds = time.perf_counter() - started
        metrics = trainer.evaluate() if trainer.eval_dataset is not None else {}
        if state.is_main_process:
            with writing(output):
                trainer.vq_model.save_pretrained(output)
                processor.save_pretrained(output)
            result = {**metrics, "steps": trainer.state.global_step, "seconds": round(seconds, 1)}
            _report(args, output, result)
    return 0


def _own_fields(config_class: type) -> type:
    """A dataclass of what a model's configuration adds to every model's, with the types themselves.

    Types of the base class name modules that it does not import, and jsonargparse then checks no field,
    or leaves all of them out.
    """
    import dataclasses
    import inspect

    types = inspect.get_annotations(config_class, eval_str=True)
    fields: list[Any] = []
    for field in dataclasses.fields(config_class):
        if field.name in types:
            value = dataclasses.field(default=field.default, default_factory=field.default_factory)  # type: ignore[call-overload]
            fields.append((field.name, types[field.name], value))
    namespace = {"__doc__": config_class.__doc__}
    return dataclasses.make_dataclass(config_class.__name__, fields, namespace=namespace)


def _resolve(args: Namespace) -> Any:
    """Fill in what was left to the kind and the resolution, and return the quantizer's configuration."""
    from ..quantizers.configuration_being_vl_vq import BeingVLVQConfig
    from ..training.vq.presets import RESOLUTION, Preset, preset

    chosen = preset(args.kind, int(args.resolution or RESOLUTION))
    sizes = args.model.as_dict()
    given = [name for name, value in sizes.items() if value != getattr(BeingVLVQConfig, name)]
    if given and (args.kind == "patch" or args.resolution is not None):
        given = [name for name in given if sizes[name] != getattr(chosen.config, name, None)]
        if given:
            raise ValueError(
                f"--model.{given[0]} sets a size, and --kind {args.kind} with --resolution sets all of them: "
                "give one or the other"
            )
    if given:
        if args.kind not in ("vqgan", sizes["quantizer"]):
            raise ValueError(f"--kind is {args.kind}, but --model.quantizer {sizes['quantizer']}")
        chosen = Preset(BeingVLVQConfig(**sizes), steps=100_000, batch_size=8, learning_rate=1e-4)
    elif args.kind == "patch":
        _refuse_of_steps(args)
        return chosen.config
    else:
        for name in sizes:
            args.model[name] = getattr(chosen.config, name)
    for name in ("steps", "batch_size", "learning_rate"):
        if args[name] is None:
            args[name] = getattr(chosen, name)
    return chosen.config


def _refuse_of_steps(args: Namespace) -> None:
    usual = make_parser().get_defaults()
    names = [*_OF_STEPS, *(f"losses.{name}" for name in usual.losses.as_dict())]
    useless = [name for name in names if args[name] != usual[name]]
    if useless:
        name = useless[0] if "." in useless[0] else useless[0].replace("_", "-")
        raise ValueError(f"--{name} is of training by steps, and --kind patch fits whole images")


def _fit_patches(args: Namespace, config: Any, output: Path) -> None:
    from ..quantizers.metrics import ReconstructionMetrics, evaluate_reconstruction
    from ..quantizers.quantizer import default_image_processor
    from ..training.vq.presets import fit_patch_vq

    started = time.perf_counter()
    processor = default_image_processor(config)
    train, evaluation = _datasets(args, processor)  # type: tuple[Any, Any]
    model = fit_patch_vq(config, train, seed=args.seed)
    metrics: dict[str, Any] = {}
    if evaluation is not None:
        metrics = evaluate_reconstruction(
            model,
            (evaluation[index]["pixel_values"][None] for index in range(len(evaluation))),
            ReconstructionMetrics(config.num_embeddings, processor, ssim=args.ssim),
        )
    with writing(output):
        model.save_pretrained(output)
        processor.save_pretrained(output)
    _report(args, output, {**metrics, "seconds": round(time.perf_counter() - started, 1)})


def _claim(args: Namespace, output: Path) -> None:
    """Save the configuration; refuse a folder with another run in it."""
    path = output / _OLD_CONFIG_FILE
    if not path.exists():
        path = output / _CONFIG_FILE
    text = make_parser().dump(args)
    refuse_used(args, output, path.name)
    if path.exists():
        found, wanted = read_yaml(path), yaml.safe_load(text)
        # of k-means, earlier versions wrote zeros for what it has no use for
        fixed = [name for name in _FIXED if args.kind != "patch" or name not in _OF_STEPS]
        refuse_others(path, found, wanted, fixed, "a run continues with what it began with")
    write_atomic(path, text)


def _make_trainer(
    args: Namespace, config: Any, output: Path
) -> tuple[VQTrainer, BeingVLImageProcessor]:
    from transformers import set_seed

    from ..quantizers.metrics import ReconstructionMetrics, inception_network
    from ..quantizers.modeling_being_vl_vq import BeingVLVQModel
    from ..quantizers.quantizer import default_image_processor
    from ..training.vq.losses import load_perceptual_loss
    from ..training.vq.module import VQLossConfig, VQTrainingModule
    from ..training.vq.trainer import VQTrainer

    processor = default_image_processor(config)
    training = _training_arguments(args, output)
    train, evaluation = _datasets(args, processor)
    perceptual = None
    if args.perceptual_backbone is not None:
        perceptual = load_perceptual_loss(args.perceptual_backbone, args.perceptual_weights)
    inception = None if args.rfid_weights is None else inception_network(args.rfid_weights)

    def empty_metrics() -> ReconstructionMetrics:
        return ReconstructionMetrics(
            config.num_embeddings,
            processor,
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
        processor=processor,
        metrics=empty_metrics,
    )
    return trainer, processor


def _training_arguments(args: Namespace, output: Path) -> VQTrainingArguments:
    from ..training.vq.trainer import VQTrainingArguments

    if args.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"--dtype must be float32 or bfloat16, got {args.dtype}")
    return VQTrainingArguments(
        **{name: args[name] for name in _OF_TRAINER},
        output_dir=str(output),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=args.batch_size,
        gradient_accumulation_steps=args.gradient_accumulation,
        lr_scheduler_type=args.schedule,
        bf16=args.dtype == "bfloat16",
        use_cpu=args.device == "cpu",
        dataloader_num_workers=0 if args.cache_images else args.workers,
        dataloader_pin_memory=args.device != "cpu",
        save_strategy="steps" if args.save_every else "no",
        save_steps=args.save_every or 1,
        save_total_limit=args.save_limit,
        eval_strategy="steps" if args.eval_every else "no",
        eval_steps=args.eval_every or None,
        logging_steps=args.log_every,
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
    train: Any = SourceImages(source, processor, indices=kept)
    evaluation: Any = None
    if args.eval_images is not None:
        evaluation = SourceImages(FolderSource(args.eval_images, shard_size=1), processor)
    elif held_out:
        evaluation = SourceImages(source, processor, indices=held_out)
    if args.cache_images:
        train = train.cached()
        evaluation = evaluation and evaluation.cached()
    return train, evaluation


def _report(args: Namespace, output: Path, result: dict[str, Any]) -> None:
    write_atomic(output / "metrics.json", json.dumps(result, indent=1))
    shown = ", ".join(
        f"{name.removeprefix('eval_')} {value:.4g}"
        for name, value in result.items()
        if isinstance(value, (int, float))
    )
    answer(args, result, f"{output}: {shown}", sys.stderr)
