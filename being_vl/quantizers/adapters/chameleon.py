"""transformers' `ChameleonVQVAE`: it encodes, and has no decoder.

`BeingVLVQModel.from_pretrained` reads the same weights; this is the library's own module, unchanged.
"""

from .adapter import Adapter


class ChameleonAdapter(Adapter):
    name = "chameleon"
    model_types = ("chameleon", "chameleon_vqgan")
    preprocessing = {"rescale_factor": 0.0078, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}  # noqa: RUF012
    stock_class = "ChameleonVQVAE"
