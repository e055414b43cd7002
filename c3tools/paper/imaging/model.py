"""The built-in image generator: its sizes, its network, and how images are sampled from it.

A rectified flow on pixels (Liu et al., 2023): ``x_t = (1 - t) x + t noise``, and the network
predicts the velocity ``noise - x`` from ``x_t``, ``t`` and one embedding. Sampling follows it from
noise (t = 1) to an image (t = 0). The network is the `UNet2DModel` of diffusers (the extra
``images``), and its flow-matching scheduler takes the steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...arrays import Pixels
from ...devices import Compute
from ...errors import GeneratorError, optional_module
from ...training.sizes import load_named_size, require_valid

SAMPLING_STEPS = 25
GUIDANCE = 2.0
_TIMES = 1000  # the network's time embedding is made for times between 0 and 1000
_GROUPS = 16


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of one training.

    Attributes:
        steps: optimiser steps.
        batch_size: photos per step.
        learning_rate: peak of the schedule: linear warm-up, then a cosine to zero.
        warmup: steps of the warm-up, at most a tenth of all.
        weight_decay: AdamW's, on matrices only.
        clip_norm: gradients are scaled down to this norm; 0 leaves them.
        ema: decay per step of the exponential moving average of the weights, which is validated and
            kept.
        drop: share of the rows whose embedding is withheld, so that guidance works.
        validations: how often, evenly over the run, the checkpoint is compared with the best one.
        seed: of initialisation, order, flips, times and noise.
    """

    steps: int = 6000
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.999
    drop: float = 0.1
    validations: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        require_valid(
            self,
            positive=("steps", "batch_size", "learning_rate", "validations"),
            not_negative=("warmup", "weight_decay", "clip_norm"),
            fractions=("ema", "drop"),
            error=GeneratorError,
        )


@dataclass(frozen=True)
class Size:
    """A size of the built-in generator: the architecture of the network, and training settings that
    suit it.

    Attributes:
        pixels: height and width of the images.
        patch: squares of so many pixels a side are the channels of one position, which makes the
            network cheaper.
        channels: of each level; each has half the resolution of the one before.
        attention: of each level, whether it has self-attention.
        blocks: residual blocks per level.
        dropout: in the residual blocks.
        dim: dimension d of the embeddings it reads.
        training: the settings of its training; they are no part of the network.
    """

    pixels: int
    patch: int
    channels: Sequence[int]
    attention: Sequence[bool]
    blocks: int = 1
    dropout: float = 0.0
    dim: int = 1
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        require_valid(
            self,
            positive=("dim", "pixels", "patch", "blocks"),
            fractions=("dropout",),
            error=GeneratorError,
        )
        step = self.patch * 2 ** (len(self.channels) - 1)
        if self.pixels % step:
            raise GeneratorError(
                f"The number of pixels per side must be a multiple of {step}, not {self.pixels}."
            )


SIZES: Mapping[str, Size] = {
    "tiny": Size(
        32, 2, (64, 64, 128), (False, True, True), training=TrainingConfig(6000, 32, 2e-3)
    ),
    "small": Size(
        64,
        2,
        (96, 192, 256),
        (False, True, True),
        2,
        training=TrainingConfig(30_000, 64, 5e-4, ema=0.9995),
    ),
    "base": Size(
        128,
        2,
        (128, 256, 384, 512),
        (False, False, True, True),
        2,
        training=TrainingConfig(150_000, 128, 3e-4, ema=0.9999),
    ),
}


def load_size(name: str, overrides: Sequence[str] = ()) -> Size:
    """Return a size by name, with some of its numbers changed.

    Args:
        name: a key of `SIZES`.
        overrides: ``setting=value``, for numbers of the size or of its training.

    Raises:
        GeneratorError: if there is no such size or setting, or a value is not of the setting's
            type.
    """
    fixed = ("seed", "steps", "dim", "channels", "attention")
    return load_named_size(SIZES, name, overrides, fixed, error=GeneratorError)


class ImageNetwork(nn.Module):
    """The velocity of the flow, from noisy images, their times and one embedding each.

    Raises:
        MissingExtraError: if diffusers is not installed.
    """

    def __init__(self, config: Size) -> None:
        super().__init__()
        self.config = config
        width = 4 * config.channels[0]
        down = [("Attn" if attends else "") + "DownBlock2D" for attends in config.attention]
        self.unet = diffusers_class("UNet2DModel")(
            sample_size=config.pixels // config.patch,
            in_channels=3 * config.patch**2,
            out_channels=3 * config.patch**2,
            block_out_channels=config.channels,
            down_block_types=tuple(down),
            up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
            layers_per_block=config.blocks,
            dropout=config.dropout,
            norm_num_groups=_GROUPS,
            attn_norm_num_groups=_GROUPS,
            attention_head_dim=min(32, *config.channels),
            resnet_time_scale_shift="scale_shift",
            # the embedding comes projected, and is added to that of the time
            class_embed_type="identity",
        )
        self.project = nn.Sequential(
            nn.Linear(config.dim, width), nn.SiLU(), nn.Linear(width, width)
        )
        # The null embedding of classifier-free guidance
        self.withheld = nn.Parameter(torch.zeros(width))
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)

    def forward(
        self, images: Tensor, times: Tensor, embeddings: Tensor, withhold: Tensor
    ) -> Tensor:
        """Return the velocity, (n, 3, pixels, pixels).

        Args:
            images: noisy images, (n, 3, pixels, pixels), around -1 to 1.
            times: (n,), 0 for an image, 1 for noise.
            embeddings: unit vectors, (n, d).
            withhold: bool (n,), rows whose embedding is replaced by the null embedding.
        """
        condition = self.project(embeddings * self.config.dim**0.5)  # (n, width)
        condition = torch.where(withhold[:, None], self.withheld.to(condition.dtype), condition)
        # (n, 3 patch^2, pixels / patch, pixels / patch)
        squares = F.pixel_unshuffle(images, self.config.patch)
        velocity = self.unet(squares, times * _TIMES, condition).sample
        return F.pixel_shuffle(velocity, self.config.patch)

    @torch.inference_mode()
    def sample(
        self,
        embeddings: Tensor,
        noise: Tensor,
        compute: Compute,
        *,
        steps: int = SAMPLING_STEPS,
        guidance: float = GUIDANCE,
    ) -> Iterator[Pixels]:
        """Yield one image per embedding, uint8 (pixels, pixels, 3); in evaluation mode, on the
        device of ``compute``.

        The number of images that are sampled at a time is fixed, and a last batch is filled up: the
        last bits of a convolution depend on the size of its batch, so that otherwise the same text
        would give another image in other company.

        Args:
            embeddings: what each image is to be of, float32 (n, d), transformed as in training.
            noise: standard normal, float32 (n, 3, pixels, pixels).
            compute: device and precision.
            steps: of the scheduler; more are slower and a little sharper.
            guidance: w of ``v_0 + w (v_e - v_0)``: above 1 the embedding counts for more than it
                did in training.
        """
        scheduler = diffusers_class("FlowMatchEulerDiscreteScheduler")(num_train_timesteps=_TIMES)
        size = 16 if compute.device_type == "cpu" else 64
        copies = 1 if guidance == 1 else 2  # with the embedding, and without it
        withhold = torch.arange(copies * size, device=compute.device) >= size
        for start in range(0, len(embeddings), size):
            rows = torch.arange(start, start + size).clamp(max=len(embeddings) - 1)
            images = noise[rows].to(compute.device)
            conditions = embeddings[rows].to(compute.device).repeat(copies, 1)
            scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), device=compute.device)
            for time in scheduler.timesteps:
                times = (time / _TIMES).expand(len(conditions))
                noisy = images.repeat(copies, 1, 1, 1)
                with compute.autocast():
                    velocity = self(noisy, times, conditions, withhold).float()
                if copies == 2:
                    with_embedding, without = velocity.chunk(2)
                    velocity = without + guidance * (with_embedding - without)
                images = scheduler.step(velocity, time, images).prev_sample
            pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte()
            squares = pixels.permute(0, 2, 3, 1).cpu().numpy()
            yield from squares[: len(embeddings) - start]


def diffusers_class(name: str) -> Any:
    """Return a class of diffusers.

    Raises:
        MissingExtraError: if it is not installed.
    """
    return getattr(
        optional_module("diffusers", "diffusers", extra="images", purpose="Generating images"), name
    )
