"""What decides the ids of a tokenized folder, besides data, codes and tokenizer.

The settings say what becomes of each kind of sample that cannot be tokenized as it is. They are written into the
folder, so that no later run continues it with others.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class TokenizeSettings:
    """What decides the ids, besides data, codes and tokenizer.

    Args:
        source: what the column `source` says.
        on_missing: an image without codes: `"raise"`, `"skip"` the sample, or leave the image out (`"text"`).
        max_length: most tokens of a sample; None for no limit.
        on_too_long: a longer sample: `"raise"` or `"skip"`. No sample is ever cut.
        on_control_token: text that spells a special token of the tokenizer: `"raise"` or `"skip"` the sample.
        on_bad_row: anything else that is wrong with a sample: `"raise"`, `"skip"` it, or `"fix"`: put
            placeholders that are missing in front, as LLaVA's loaders do, and skip what that does not mend.
        image_root: what stands before the ids of `being-vl encode` in the data's names of images.
        shard_size: samples in a shard.
        dropout: the probability that a merge of an image is left out where it applies (BPE-dropout, see
            `ImageBPE.encode`). Not of videos, which are then refused.
        seed: of dropout. What is left out follows from it, the id of the sample, the place of the image in the
            sample and its id, so from neither processes nor order; another seed gives other tokens of each image.

    Raises:
        ValueError: a number is not positive, or dropout not in [0, 1].
    """

    source: str
    on_missing: Literal["raise", "skip", "text"] = "raise"
    max_length: int | None = None
    on_too_long: Literal["raise", "skip"] = "raise"
    on_control_token: Literal["raise", "skip"] = "raise"
    on_bad_row: Literal["raise", "skip", "fix"] = "raise"
    image_root: str = ""
    shard_size: int = 2048
    dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_length", "shard_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout must be a probability in [0, 1], got {self.dropout!r}")

    def identity(self) -> dict[str, Any]:
        """What a folder says of them. Dropout and its seed only where they decide ids."""
        said = asdict(self)
        if not self.dropout:
            del said["dropout"], said["seed"]
        return said
