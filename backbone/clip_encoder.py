"""The frozen image tower of a CLIP as an encoder of the feature store."""

import math
from concurrent.futures import ThreadPoolExecutor

import torch
from PIL import Image
from torch import Tensor, nn

from backbone.clip import CLIPBackbone
from backbone.clip_files import sha256_state
from utils.errors import UserError

CPU_BATCH_BYTES, DEVICE_BATCH_BYTES = 2**24, 2**32  # activations of one encoder batch: close to the cache size; 4 GiB


class ClipImageEncoder:
    """The frozen image tower as an encoder of the FeatureStore: raw images -> fp32 rows on the CPU.

    layer "pooled": `encode_image`, (B, D). "unprojected": what it projects, (B, vision_width). "tokens":
    `image_tokens`, flattened; view it as (B, *shape). "early": `early_feature`.
    The key comes from the weights at construction, so a tuned tower never gets features of another.
    """

    def __init__(self, backbone: CLIPBackbone, layer: str = "pooled"):
        layers = {
            "pooled": backbone.encode_image,
            "unprojected": backbone.encode_unprojected,
            "tokens": backbone.image_tokens,
            "early": backbone.early_feature,
        }
        if layer not in layers:
            raise UserError(f"unknown layer '{layer}' of the CLIP image tower: use {', '.join(layers)}")
        if layer != "pooled" and not backbone.n_image_tokens:
            raise UserError(f"{backbone.name} has a ResNet image tower without tokens; choose a ViT, e.g. ViT-B/16")
        self.backbone, self.run = backbone, layers[layer]
        rows = (backbone.n_image_tokens,) if layer == "tokens" else ()
        self.shape = (*rows, backbone.embed_dim if layer == "pooled" else backbone.vision_width)
        self.dim = math.prod(self.shape)
        self.key = "|".join(
            map(
                str,
                ("clip", sha256_state(backbone.clip.visual.state_dict()), backbone.activation, layer, backbone.dtype),
            )
        )
        self.key += f"|bicubic {backbone.resolution} {backbone.mean} {backbone.std}"
        if backbone.resize_kind != "shorter":
            self.key += f" {backbone.resize_kind}"
        # Numbers held at once in a block: 16 per token and channel (input, norm, q, k, v, 4 + 4 in the MLP, sums);
        # a ResNet's widest stage is counted as 64 planes at a quarter of the resolution.
        tokens = backbone.n_image_tokens or (backbone.resolution // 4) ** 2
        image_bytes = 16 * tokens * (backbone.vision_width if backbone.n_image_tokens else 64) * backbone.dtype.itemsize
        budget = CPU_BATCH_BYTES if backbone.device.type == "cpu" else DEVICE_BATCH_BYTES
        self.batch_size = min(max(budget // image_bytes, 32), 1024)
        self._stamp = self._versions()

    @property
    def deterministic(self) -> bool:
        """Whether the same image gives the same row: no dropout or batch statistics in training mode."""
        noisy = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
        return not any(isinstance(m, noisy) and m.training for m in self.backbone.clip.visual.modules())

    def _versions(self) -> list[tuple[int, int]]:
        """The tower's tensors and how often each was modified."""
        visual = self.backbone.clip.visual
        return [(id(tensor), tensor._version) for tensor in visual.parameters()]

    @torch.no_grad()
    def __call__(self, images: Tensor | list[Image.Image]) -> Tensor:
        """uint8 or float [0, 1] images (B, C, H, W), or B PIL images -> (B, dim)."""
        if self._versions() != self._stamp:
            raise UserError(
                "the CLIP image tower was trained after its feature encoder was created: create a new ClipImageEncoder"
            )
        if isinstance(images, Tensor):
            x = self.backbone.normalize_images(images.to(self.backbone.device))
        else:
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # PIL releases the interpreter lock
                x = torch.stack(list(pool.map(self.backbone.preprocess, images))).to(self.backbone.device)
        return self.run(x).flatten(1).float().cpu()
