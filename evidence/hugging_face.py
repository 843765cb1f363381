"""Hugging Face's image classifiers, each a factory: its kind at a small size, with random weights, for 64 pixels.

pip install transformers
evidence/networks.py --out docs/hugging_face.json evidence/hugging_face.py
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn

VIT = {
    "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 192, "image_size": 64,
    "patch_size": 8,
}  # fmt: skip
DINO = {**VIT, "mlp_ratio": 2}
SWIN = {"image_size": 64, "patch_size": 2, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
PYRAMID = {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 8]}
CONVNEXT = {"num_stages": 3, "hidden_sizes": [24, 48, 96], "depths": [2, 2, 2], "image_size": 64}
RESNET = {"embedding_size": 16, "hidden_sizes": [32, 64, 128, 256], "depths": [2, 2, 2, 2]}
LEVIT = {"hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [2, 2, 2], "key_dim": [16] * 3}
FACTORIES: dict[str, dict[str, Any]] = {
    "ViT": VIT, "DeiT": VIT, "Beit": VIT, "Data2VecVision": VIT, "ViTMSN": VIT, "IJepa": VIT, "Dinov2": DINO,
    "Dinov2WithRegisters": DINO, "Swin": SWIN, "Swinv2": SWIN, "ConvNext": CONVNEXT, "ConvNextV2": CONVNEXT,
    "ResNet": RESNET, "RegNet": {**RESNET, "groups_width": 16}, "MobileNetV1": {"image_size": 64},
    "MobileNetV2": {"image_size": 64}, "MobileViTV2": {"image_size": 64, "width_multiplier": 0.5},
    "MobileViT": {
        "image_size": 64, "hidden_sizes": [48, 64, 80], "neck_hidden_sizes": [16, 16, 24, 24, 32, 40, 160],
    },
    "EfficientNet": {"image_size": 64, "width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
    "Pvt": {"image_size": 64, **PYRAMID}, "PvtV2": {"image_size": 64, **PYRAMID}, "Segformer": PYRAMID,
    "Levit": {"image_size": 64, **LEVIT},
    "PoolFormer": {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1]},
    "FocalNet": {
        "image_size": 64, "embed_dim": 24, "depths": [2, 2], "focal_levels": [2, 2], "focal_windows": [3, 3],
    },
    "SwiftFormer": {"image_size": 64}, "HGNetV2": {}, "TextNet": {},
    "Hiera": {
        "image_size": [64, 64], "embed_dim": 24, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8],
        "patch_size": [7, 7],
    },
}  # fmt: skip


class Logits(nn.Module):
    """A model whose answer is the logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


def _make(name: str, num_classes: int) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{name}Config")(num_labels=num_classes, **FACTORIES[name])
    return Logits(getattr(transformers, f"{name}ForImageClassification")(config))


globals().update({name: functools.partial(_make, name) for name in FACTORIES})
