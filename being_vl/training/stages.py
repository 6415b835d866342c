"""Which parameters move in which stage.

Source: Being-VL-0, section 4.2: `pretrain` (the paper's PT) learns the embeddings of the image tokens on a
frozen language model, `sft` trains everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..modeling_being_vl import BeingVLForCausalLM

STAGES = ("pretrain", "sft")


def prepare_stage(
    model: BeingVLForCausalLM, stage: str, *, train_embeddings: str = "image", freeze: str = "none"
) -> None:
    """Freeze and unfreeze the model's parameters for a stage, whatever they were before.

    Args:
        model: changed in place.
        stage: `"pretrain"` or `"sft"`.
        train_embeddings: in `pretrain`, `"image"` (only the rows after the text vocabulary move, the
            paper's PT(freeze)) or `"all"` (every parameter moves, PT(full)).
        freeze: in `sft`, `"none"` or `"image"` (the rows after the text vocabulary stay, the paper's
            ablation).

    Raises:
        ValueError: one of the names is unknown.
    """
    for name, value, known in (
        ("stage", stage, STAGES),
        ("train_embeddings", train_embeddings, ("image", "all")),
        ("freeze", freeze, ("none", "image")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    model.requires_grad_(True)
    model.unfreeze()
    if stage == "sft":
        if freeze == "image":
            model.freeze_image_embeddings()
        return
    if train_embeddings == "image":
        model.requires_grad_(False)
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            module.weight.requires_grad_(True)
        model.freeze_text_embeddings()
