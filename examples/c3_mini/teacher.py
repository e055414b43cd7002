"""The teacher of c3-mini: several pairs of heads on frozen features, and the space that their mean
cosine spans.

Each member maps image features and caption features into a space of its own, trained by the
symmetric InfoNCE loss on different random numbers. The mean of the members' cosines is the cosine
of their concatenated outputs; these are projected to the principal axes of the training rows, which
keeps nearly all of it in few dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel

from c3tools.terminal import TerminalReporter

Rows = npt.NDArray[np.int64]
CAPTIONS = 3  # of a photo, in each step
_BLOCK = 4096


@dataclass(frozen=True)
class TeacherSettings:
    """Training settings of each member, all chosen on the validation photos of Flickr8k.

    Attributes:
        members: pairs of heads.
        scale: fixed logit scale.
        epochs: passes over the photos.
        batch_size: photos, each with 3 of its captions.
        learning_rate: peak of a one-cycle schedule, AdamW.
        weight_decay: of AdamW.
        noise: standard deviation, in standardised image features.
        smoothing: of the labels.
        decay: of the running mean of the weights, which are what is kept.
    """

    members: int = 8
    scale: float = 40.0
    epochs: int = 30
    batch_size: int = 512
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    noise: float = 0.5
    smoothing: float = 0.05
    decay: float = 0.99


class Member(nn.Module):
    """One pair of heads."""

    def __init__(self, image: int, text: int, hidden: int = 512, dim: int = 256) -> None:
        super().__init__()
        self.image, self.text = _head(image, hidden, dim, 0.1), _head(text, hidden, dim, 0.3)


class Teacher(nn.Module):
    """The members behind one standardisation, projected to ``dim`` dimensions by `fit_axes`."""

    mean: Tensor
    spread: Tensor
    text_mean: Tensor
    text_spread: Tensor
    axes: Tensor

    def __init__(self, image: Tensor, text: Tensor, settings: TeacherSettings) -> None:
        """Take means and spreads from training rows: image (n, e) and text (m, f)."""
        super().__init__()
        image = compressed(image)
        self.register_buffer("mean", image.mean(dim=0))
        self.register_buffer("spread", image.std(dim=0) + 1e-3)
        self.register_buffer("text_mean", text.mean(dim=0))
        self.register_buffer("text_spread", text.std(dim=0) + 1e-6)
        self.members = nn.ModuleList(
            Member(image.shape[1], text.shape[1]) for _ in range(settings.members)
        )
        self.register_buffer("axes", torch.zeros(0))

    def image_inputs(self, features: Tensor) -> Tensor:
        """Standardised square roots: ReLU features have long tails."""
        return (compressed(features) - self.mean) / self.spread

    def text_inputs(self, features: Tensor) -> Tensor:
        """Standardised features."""
        return (features - self.text_mean) / self.text_spread

    @torch.no_grad()
    def fit_axes(self, image: Tensor, text: Tensor, dim: int) -> float:
        """Project to the ``dim`` principal axes of these rows, both modalities alike; the share of
        energy kept.
        """
        second = torch.zeros(())
        for rows in (self.images(image), self.texts(text)):
            second = second + rows.T.double() @ rows.double() / len(rows)
        values, vectors = torch.linalg.eigh(second)
        self.axes = vectors[:, -dim:].float()
        return float(values[-dim:].sum() / values.sum())

    def images(self, features: Tensor) -> Tensor:
        """Return unit rows for image features (n, e)."""
        return self._joint(self.image_inputs(features), "image")

    def texts(self, features: Tensor) -> Tensor:
        """Return unit rows for caption features (m, f), block by block."""
        return torch.cat(
            [self._joint(self.text_inputs(block), "text") for block in features.split(_BLOCK)]
        )

    def _joint(self, inputs: Tensor, side: str) -> Tensor:
        parts = [normalize(member.get_submodule(side)(inputs), dim=1) for member in self.members]
        joint = torch.cat(parts, dim=1) / len(parts) ** 0.5
        return normalize(joint @ self.axes, dim=1) if len(self.axes) else joint


def compressed(features: Tensor) -> Tensor:
    """Signed square root."""
    return features.sign() * features.abs().sqrt()


def train_teacher(
    views: Sequence[Tensor], texts: Tensor, captions: Rows, settings: TeacherSettings, seed: int = 0
) -> Teacher:
    """Train every member.

    Args:
        views: (n, e) each: the same photos, seen differently.
        texts: (m, f), features of all captions.
        captions: int64 (n, k), rows of ``texts`` that describe each photo.
        settings: how.
        seed: of everything random.
    """
    torch.manual_seed(seed)
    teacher = Teacher(views[0], texts[captions.ravel()], settings)
    inputs = [teacher.image_inputs(view) for view in views]
    described = teacher.text_inputs(texts)
    with TerminalReporter().progress("Teacher", settings.members * settings.epochs) as progress:
        for number, member in enumerate(teacher.members):
            assert isinstance(member, Member)
            torch.manual_seed(seed + number)
            for loss in _epochs(
                member, inputs, described, captions, settings, np.random.default_rng([seed, number])
            ):
                progress.advance(1, f"loss {loss:.2f}")
    return teacher.eval().requires_grad_(False)


def _epochs(
    member: Member,
    views: Sequence[Tensor],
    texts: Tensor,
    captions: Rows,
    settings: TeacherSettings,
    rng: np.random.Generator,
) -> Iterator[float]:
    """Train one member, and yield the loss after each epoch."""
    size = min(settings.batch_size, len(captions))
    steps = len(captions) // size
    optimizer = torch.optim.AdamW(
        member.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = one_cycle(optimizer, settings.learning_rate, settings.epochs * steps)
    mean = running_mean(member, settings.decay)
    for _ in range(settings.epochs):
        order = rng.permutation(len(captions))[: steps * size].reshape(steps, size)
        for photos in order:
            seen = rng.integers(len(views), size=size)
            x = torch.stack([views[view][photo] for view, photo in zip(seen, photos, strict=True)])
            x = x + settings.noise * torch.randn_like(x)
            said = rng.permuted(captions[photos], axis=1)[:, :CAPTIONS]
            loss = _loss(member, x, texts[torch.from_numpy(said.T.reshape(-1))], settings)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            mean.update_parameters(member)
        yield loss.item()
    member.load_state_dict(mean.module.state_dict())


def one_cycle(
    optimizer: torch.optim.Optimizer, rate: float | list[float], steps: int
) -> OneCycleLR:
    """Return a learning rate that rises to its peak in a tenth of the steps, then falls."""
    return OneCycleLR(optimizer, rate, total_steps=steps, pct_start=max(0.1, 2 / steps))


def running_mean(module: nn.Module, decay: float) -> AveragedModel:
    """Return the running mean of a module's weights, which forgets faster at the start."""

    def average(old: Tensor, new: Tensor, n: Tensor | int) -> Tensor:
        return old.lerp(new, 1 - min(decay, (1 + float(n)) / (10 + float(n))))

    return AveragedModel(module, avg_fn=average)


def _loss(member: Member, x: Tensor, t: Tensor, settings: TeacherSettings) -> Tensor:
    """Return symmetric InfoNCE, averaged over the captions of a photo: x (n, e), t (k n, f),
    caption by caption.
    """
    n = len(x)
    # (n, k n)
    logits = settings.scale * normalize(member.image(x), dim=1) @ normalize(member.text(t), dim=1).T
    own = torch.arange(n)
    to_image = cross_entropy(logits.T, own.repeat(len(t) // n), label_smoothing=settings.smoothing)
    to_text = [
        cross_entropy(block, own, label_smoothing=settings.smoothing)
        for block in logits.split(n, dim=1)
    ]
    return (to_image + torch.stack(to_text).mean()) / 2


def _head(features: int, hidden: int, dim: int, input_dropout: float) -> nn.Module:
    return nn.Sequential(
        nn.Dropout(input_dropout),
        nn.Linear(features, hidden),
        nn.GELU(),
        nn.Dropout(0.5),
        nn.Linear(hidden, dim),
    )
