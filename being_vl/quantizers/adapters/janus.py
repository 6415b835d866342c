"""transformers' `JanusVQVAE` (Janus, Janus-Pro; the VQ-GAN of LlamaGen).

As in transformers, vectors are of unit length in decoding and as they are in encoding. Its decoder takes one
square size; here its parts are called, which take any.
"""

import torch

from .adapter import Adapter


class JanusAdapter(Adapter):
    name = "janus"
    model_types = ("janus", "janus_vqgan")
    stock_class = "JanusVQVAE"

    def sizes(self) -> dict[str, int]:
        sizes = super().sizes()
        return {**sizes, "resolution": self.model.config.num_patches * sizes["downsampling"]}

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        vectors = self.vectors(codes, unit=True).contiguous()
        return self.model.decoder(self.model.post_quant_conv(vectors))
