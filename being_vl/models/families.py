"""config.json of a text model → the family whose classes can extend it, or one sentence why none can.

The one table of what being_vl extends; the model classes, the Auto classes, the code that travels, `init`
and `export` all read it. It needs neither torch nor transformers, so a command can ask before it works.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

# How the rows of new tokens start, see `image_rows.py`; here, since the commands' options name them without torch.
ImageInit = Literal["normal", "mean_text", "codebook", "constituents"]


@dataclass(frozen=True)
class Family:
    """A family of text models: its title for people, the stock model's `model_type` (`base_type`), what the names of
    transformers' and of being_vl's classes begin with, and the `model_type` of a checkpoint which being_vl makes.
    """

    title: str
    base_type: str
    stock: str
    own: str
    model_type: str

    @property
    def stock_class(self) -> str:
        """transformers' class with a head, which loads an extended checkpoint as it is."""
        return f"{self.stock}ForCausalLM"

    @property
    def config_class(self) -> str:
        return f"{self.own}Config"

    @property
    def decoder_class(self) -> str:
        return f"{self.own}Model"

    @property
    def language_model_class(self) -> str:
        return f"{self.own}ForCausalLM"


FAMILIES: tuple[Family, ...] = (
    Family("Llama", "llama", "Llama", "BeingVL", "being_vl"),
    Family("Qwen 2, 2.5", "qwen2", "Qwen2", "BeingVLQwen2", "being_vl_qwen2"),
    Family("Qwen 3", "qwen3", "Qwen3", "BeingVLQwen3", "being_vl_qwen3"),
    Family("Mistral", "mistral", "Mistral", "BeingVLMistral", "being_vl_mistral"),
    Family("Gemma 3, text", "gemma3_text", "Gemma3", "BeingVLGemma3", "being_vl_gemma3"),
    Family("SmolLM 3", "smollm3", "SmolLM3", "BeingVLSmolLM3", "being_vl_smollm3"),
    Family("Phi 3, 3.5", "phi3", "Phi3", "BeingVLPhi3", "being_vl_phi3"),
    Family("OLMo 2", "olmo2", "Olmo2", "BeingVLOlmo2", "being_vl_olmo2"),
)
MODEL_TYPES: frozenset[str] = frozenset(family.model_type for family in FAMILIES)


def auto_classes(family: Family) -> dict[str, str]:
    """Auto class of transformers → class of a family's checkpoints, by its module below the package."""
    language_model = f"models.modeling_being_vl.{family.language_model_class}"
    return {
        "AutoConfig": f"models.configuration_being_vl.{family.config_class}",
        "AutoModel": f"models.modeling_being_vl.{family.decoder_class}",
        "AutoModelForCausalLM": language_model,
        "AutoModelForImageTextToText": language_model,
        "AutoModelForMultimodalLM": language_model,
    }


_TOWERS = ("vision_config", "audio_config", "vision_tower", "thinker_config")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def family_of_base(config: Mapping[str, Any], source: str) -> Family:
    """The family of a text model, given the fields of its config.json, and what a message calls it.

    Raises:
        ValueError: being_vl does not extend it; the message says why, and what it does extend.
    """
    model_type = config.get("model_type")
    for family in FAMILIES:
        if family.base_type == model_type:
            return family
    if model_type in MODEL_TYPES:
        raise ValueError(f"{source} is a Being-VL checkpoint ({model_type!r}), not a text model")
    if any(config.get(name) for name in _TOWERS):
        why = "it has a vision or audio tower of its own"
        text = (config.get("text_config") or {}).get("model_type")
        if text in {family.base_type for family in FAMILIES}:
            why += f"; give its text model ({text}), saved by itself"
    elif any((config.get(name) or 0) > 1 for name in _EXPERTS) or "moe" in str(model_type):
        why = "it is a mixture of experts, and only dense decoders can be extended"
    else:
        why = "no class extends that type"
    known = ", ".join(f"{family.title} ({family.base_type})" for family in FAMILIES)
    raise ValueError(
        f"{source} is a model of type {model_type!r}: {why}. What can be extended: {known}"
    )


def family_of_checkpoint(model_type: str | None, source: str) -> Family:
    """The family of a checkpoint that being_vl made; ValueError if `model_type` is no Being-VL language model's."""
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    raise ValueError(
        f"{source} is a model of type {model_type!r}, not a Being-VL checkpoint; `being-vl init` makes one "
        "of a text model"
    )
