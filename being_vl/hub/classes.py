"""Auto class → our class: the one table that registration and `auto_map` read."""

from __future__ import annotations

from ..models.families import FAMILIES, auto_classes

PROCESSING = {
    "AutoTokenizer": "processing.tokenization_being_vl.BeingVLTokenizer",
    "AutoImageProcessor": "quantizers.image_processing_being_vl.BeingVLImageProcessor",
    "AutoVideoProcessor": "quantizers.video_processing_being_vl.BeingVLVideoProcessor",
    "AutoProcessor": "processing.processing_being_vl.BeingVLProcessor",
}

# model type → Auto class → class, by its module below the package.
CLASSES: dict[str, dict[str, str]] = {
    **{family.model_type: {**auto_classes(family), **PROCESSING} for family in FAMILIES},
    "being_vl_vq": {
        "AutoConfig": "quantizers.configuration_being_vl_vq.BeingVLVQConfig",
        "AutoModel": "quantizers.modeling_being_vl_vq.BeingVLVQModel",
    },
    "being_vl_adapted_vq": {
        "AutoConfig": "quantizers.modeling_being_vl_adapted_vq.BeingVLAdaptedVQConfig",
        "AutoModel": "quantizers.modeling_being_vl_adapted_vq.BeingVLAdaptedVQModel",
    },
    "being_vl_patch_vq": {
        "AutoConfig": "quantizers.modeling_being_vl_patch_vq.BeingVLPatchVQConfig",
        "AutoModel": "quantizers.modeling_being_vl_patch_vq.BeingVLPatchVQModel",
    },
}
