"""transformers' `Emu3VQVAE`: a video model, given single images or videos."""

import torch

from .adapter import CLIP, Adapter


class Emu3Adapter(Adapter):
    name = "emu3"
    model_types = ("emu3", "emu3_vqgan")
    preprocessing = CLIP
    stock_class = "Emu3VQVAE"

    def sizes(self) -> dict[str, int]:
        config = self.model.config
        return {
            "num_embeddings": config.codebook_size,
            "downsampling": 2 ** (len(config.channel_multiplier) - 1),
            "resolution": 512,
            "temporal_downsampling": config.temporal_downsample_factor,
        }

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = pixel_values.shape
        sizes = torch.tensor([[height, width]] * batch, device=pixel_values.device)
        return torch.stack(list(self.model.encode(pixel_values, sizes).image_tokens))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.model.decode(codes)

    def encode_video(self, pixel_values: torch.Tensor) -> torch.Tensor:
        short = -len(pixel_values) % self.model.config.temporal_downsample_factor
        whole = torch.cat([pixel_values, pixel_values[-1:].expand(short, -1, -1, -1)])
        sizes = torch.tensor([whole.shape[2:]], device=whole.device)
        # The library crops the axis that it takes for the height, which is time here; sizes beyond it crop nothing.
        found = self.model.encode(whole[None], sizes * max(1, len(whole)))
        return found.image_tokens[0]

    def decode_video(self, codes: torch.Tensor) -> torch.Tensor:
        return self.model.decode(codes[None])[0]
