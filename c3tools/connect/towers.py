"""The towers of an open_clip model as modules and inputs of training, and the model that comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from ..encoders import ImagePreprocessor, ModelName, Network, open_image
from ..encoders.inference import can_trim, end_positions, trimmed_forward
from ..errors import ConnectError
from ..io.files import write_atomically, write_json_atomically
from ..seeds import generator
from .losses import ContrastiveLoss
from .pairs import Indices

CONFIG_FILE, MODEL_FILE = "open_clip_config.json", "open_clip_model.safetensors"
_CROP_AREA = 0.5, 1.0
_CROP_RATIO = 3 / 4, 4 / 3
_READERS = 4


class ImageTower(nn.Module):
    """From pixels, uint8 (n, height, width, 3), to features (n, d).

    Args:
        network: whose image tower it is.
        trunk: stop before the projection head: features (n, e).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Network, *, trunk: bool = False) -> None:
        super().__init__()
        self.model = network.model
        self.trunk = image_trunk(network)[0] if trunk else None
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(network.preprocess.mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(network.preprocess.std).view(shape), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Scale and encode."""
        x = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        if self.trunk is not None:
            return self.trunk(x)  # type: ignore[no-any-return]
        return self.model.encode_image(x)  # type: ignore[operator,no-any-return]


def image_trunk(network: Network) -> tuple[nn.Module, nn.Module]:
    """Trunk and projection head of the image tower, the head being applied to what the trunk gives.

    Raises:
        ConnectError: if the tower is not divided so; those from timm are.
    """
    visual = network.model.visual
    trunk, head = getattr(visual, "trunk", None), getattr(visual, "head", None)
    if not (isinstance(trunk, nn.Module) and isinstance(head, nn.Module) and any(True for _ in head.parameters())):
        raise ConnectError(
            f"The image tower of {network.identity['name']} has no projection head of its own to train.",
            remedy="Leave --image-head away, or use `c3 connect full`.",
        )
    return trunk, head


class TextTower(nn.Module):
    """From token ids (n, context length) to features (n, d); without the padding, where that is exact."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.model = network.model
        self.trims = can_trim(network.model, network.tokenizer)

    def forward(self, tokens: Tensor) -> Tensor:
        """Cut to the longest text and encode."""
        tokens = tokens.long()
        if not self.trims:
            return self.model.encode_text(tokens)  # type: ignore[operator,no-any-return]
        return trimmed_forward(self.model, tokens[:, : int(end_positions(self.model, tokens).max()) + 1])


class TokenInputs:
    """Texts as token ids."""

    def __init__(self, network: Network, texts: Sequence[str]) -> None:
        self._tokens = network.tokenizer(list(texts)).to(torch.int32)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._tokens)

    def rows(self, numbers: Indices, epoch: int | None = None) -> Tensor:
        """Token ids, int32 (n, context length); the same in every epoch."""
        return self._tokens[torch.from_numpy(numbers)]  # type: ignore[no-any-return]


class PhotoInputs:
    """Image files as pixels, decoded when they are asked for.

    Args:
        paths: of the images.
        keys: of the images; augmentation is drawn from (seed, epoch, key).
        preprocess: to the size the model takes.
        seed: of the augmentation; None for none.
    """

    def __init__(
        self, paths: Sequence[str], keys: Sequence[str], preprocess: ImagePreprocessor, seed: int | None = None
    ) -> None:
        self._paths, self._keys, self._preprocess, self._seed = paths, keys, preprocess, seed
        self._pool = ThreadPoolExecutor(_READERS)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._paths)

    def rows(self, numbers: Indices, epoch: int | None = None) -> Tensor:
        """Pixels, uint8 (n, height, width, 3); augmented in an epoch.

        Raises:
            OSError, Image.DecompressionBombError, SyntaxError, ValueError: if a file cannot be decoded.
        """
        return torch.from_numpy(np.stack(list(self._pool.map(lambda row: self._pixels(int(row), epoch), numbers))))

    def _pixels(self, row: int, epoch: int | None) -> np.ndarray[Any, Any]:
        image, _, _ = open_image(self._paths[row], self._preprocess.size)
        if epoch is None or self._seed is None:
            return self._preprocess(image)
        return augmented(image, self._preprocess.size, generator(self._seed, "augment", epoch, self._keys[row]))


def augmented(image: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """A random part of half the area or more, resized to ``size`` (height, width), mirrored half the time: uint8."""
    width, height = image.size
    area = width * height * rng.uniform(*_CROP_AREA)
    ratio = np.exp(rng.uniform(*np.log(_CROP_RATIO)))
    w, h = min(width, np.sqrt(area * ratio)), min(height, np.sqrt(area / ratio))
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    part = image.resize(size[::-1], Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(part, dtype=np.uint8)


def choose_trained(network: Network, *, image_tower: bool, image_head: bool = False) -> None:
    """Let gradients into the text tower and, if asked for, the image tower or its head; the loss has the scale."""
    network.model.requires_grad_(True)
    network.model.visual.requires_grad_(image_tower)
    if image_head:
        image_trunk(network)[1].requires_grad_(True)
    for name in ("logit_scale", "logit_bias"):
        parameter = getattr(network.model, name, None)
        if parameter is not None:
            parameter.requires_grad_(False)


@torch.no_grad()
def save_open_clip(network: Network, loss: ContrastiveLoss, folder: Path, *, half: bool = False) -> None:
    """Write a model that open_clip, and every command, loads as ``local-dir:FOLDER``; its logit scale is the loss's.

    Args:
        network: trained.
        loss: has the logit scale and, for the sigmoid loss, the bias.
        folder: of the model.
        half: store the weights as float16.
    """
    model = network.model
    nn.init.constant_(model.get_parameter("logit_scale"), float(loss.log_scale))
    if getattr(model, "logit_bias", None) is not None and loss.bias is not None:
        nn.init.constant_(model.get_parameter("logit_bias"), float(loss.bias))
    tensors = {
        key: (value.half() if half and value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in model.state_dict().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(network.tokenizer, "save_pretrained"):  # one of transformers; CLIP's own comes with open_clip
        network.tokenizer.save_pretrained(folder)
    write_atomically(folder / MODEL_FILE, _saving(tensors))
    settings = ("mean", "std", "interpolation", "resize_mode")
    preprocess = {key: network.preprocess.config[key] for key in settings if key in network.preprocess.config}
    config = dict(open_clip.get_model_config(ModelName.parse(network.identity["name"]).architecture))
    for part, switch in (("vision_cfg", "timm_model_pretrained"), ("text_cfg", "hf_model_pretrained")):
        if switch in config.get(part, {}):  # its weights are in the file
            config[part] = {**config[part], switch: False}
    write_json_atomically(folder / CONFIG_FILE, {"model_cfg": config, "preprocess_cfg": preprocess})


def _saving(tensors: dict[str, Tensor]) -> Callable[[Path], None]:
    return lambda path: save_file(tensors, path)
