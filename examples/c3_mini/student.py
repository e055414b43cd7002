"""Train the towers of c3-mini to reproduce the embeddings of the teacher, and then on pairs.

Two constant directions are added to the space of the teacher, one per modality. They stand for the
cones that large towers start in; the settings say how wide they are. The student begins in such
cones too (offsets on its last layers), so its gap is mostly that of its targets. The last stage,
which trains on pairs at a logit scale of 67, could close the gap but hardly does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from features import split_tower
from teacher import CAPTIONS, Teacher, one_cycle, running_mean
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, normalize

from c3tools.encoders.towers import trimmed_forward
from c3tools.reporter import Progress
from c3tools.terminal import TerminalReporter

Rows = npt.NDArray[np.int64]
# offset of the outputs at the start, as a multiple of their spread: a gap of 1.13
_START_CONE = 1.33
_LOG_POINTS = 10  # of each stage
_FEW = 64  # photos whose maps are gone through at a time
Watch = Callable[[int, float], None]


@dataclass(frozen=True)
class StudentSettings:
    """Training settings of the student, chosen on the validation photos of Flickr8k.

    Attributes:
        scale: logit scale, of training on pairs and of the model.
        cone: share of the squared length of a target that is the constant direction of its
            modality.
        image_steps: of the image head, towards the teacher's embeddings of mixed photos.
        image_batch: photos in a step of that.
        image_rate: peak learning rate of that.
        text_epochs: over all captions, towards the teacher's embeddings.
        text_batch: captions in a step of that.
        text_rate: peak learning rate of that.
        tower_epochs: of the image tower's last blocks and head, over the photos, towards their
            captions.
        tower_batch: photos, each with 3 of its captions, in a step of that.
        tower_rate: peak learning rate of the last blocks in that.
        tower_head_rate: and of the head.
        tower_pull: weight of the distance from the teacher's embeddings in that.
        tower_dropout: of the features between the two.
        tower_noise: on these features, as a multiple of their spread.
        tower_smoothing: of the labels.
        weight_decay: of AdamW.
    """

    scale: float = 67.0
    cone: float = 0.4
    image_steps: int = 1500
    image_batch: int = 512
    image_rate: float = 2e-3
    text_epochs: int = 5
    text_batch: int = 512
    text_rate: float = 1e-3
    tower_epochs: int = 10
    tower_batch: int = 256
    tower_rate: float = 3e-4
    tower_head_rate: float = 1e-3
    tower_pull: float = 3.0
    tower_dropout: float = 0.4
    tower_noise: float = 0.4
    tower_smoothing: float = 0.05
    weight_decay: float = 0.05


class Vocabulary:
    """The tokens that the training captions have, numbered without gaps; the order of their numbers
    stays.

    So the end-of-text token stays the highest, by which open_clip finds it.
    """

    def __init__(self, tokens: Tensor) -> None:
        self.used = torch.unique(tokens)  # sorted
        self._number = torch.zeros(int(self.used[-1]) + 1, dtype=torch.long)
        self._number[self.used.long()] = torch.arange(len(self.used))

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return new numbers of these tokens; one that no training caption has becomes number 0,
        which is padding.
        """
        return self._number[tokens.long()]


def text_inputs(captions: list[str]) -> Tensor:
    """Token ids, int32 (m, 77)."""
    tokenizer = open_clip.SimpleTokenizer()
    return torch.cat(
        [tokenizer(captions[i : i + 4096]).to(torch.int32) for i in range(0, len(captions), 4096)]
    )


class Student(nn.Module):
    """The trained parts: the image tower's last blocks and head, and the text tower.

    Args:
        config: of the open_clip model.
        vocabulary: of the training captions.
        trunk: the trained image trunk.
        features: image features (n, e) of training photos, which the head's input is standardised
            by.
        seed: of the weights.
    """

    mean: Tensor
    spread: Tensor

    def __init__(
        self,
        config: dict[str, Any],
        vocabulary: Vocabulary,
        trunk: nn.Module,
        features: Tensor,
        seed: int,
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.late = copy.deepcopy(split_tower(trunk)[1])
        small = {**config, "text_cfg": {**config["text_cfg"], "vocab_size": len(vocabulary.used)}}
        model = open_clip.CLIP(**small)
        self.head = model.visual.head
        del model.visual
        self.tower = model
        self.register_buffer("mean", features.mean(dim=0))
        self.register_buffer("spread", features.std(dim=0) + 1e-3)

    @torch.no_grad()
    def start_in_cones(self, features: Tensor, tokens: Tensor) -> None:
        """Offsets on both last layers: the last axis but one for the image head, the last for the
        text tower.
        """
        dim = self.head.mlp.fc2.out_features
        for outputs, axis in ((self.images(features), dim - 2), (self.texts(tokens), dim - 1)):
            spread = (outputs - outputs.mean(dim=0)).square().sum(dim=1).mean().sqrt()
            offset = _START_CONE * spread * torch.eye(dim)[axis] - outputs.mean(dim=0)
            if axis == dim - 2:
                self.head.mlp.fc2.bias += offset
            else:
                self.tower.ln_final.bias += torch.linalg.solve(self.tower.text_projection.T, offset)

    def pooled(self, maps: Tensor) -> Tensor:
        """Trunk features (n, e) of maps (n, c, h, w) before the last blocks."""
        features: Tensor = self.late(maps.float())
        return features

    @torch.no_grad()
    def all_pooled(self, maps: Tensor) -> Tensor:
        """Return the same, a few at a time, for use."""
        self.late.eval()
        return torch.cat([self.pooled(block) for block in maps.split(_FEW)])

    def images(self, features: Tensor) -> Tensor:
        """Embeddings (n, d) of trunk features (n, e), not normalised."""
        rows: Tensor = self.head((features - self.mean) / self.spread)
        return rows

    @torch.no_grad()
    def all_texts(self, tokens: Tensor) -> Tensor:
        """Return unit rows for tokens of any number, for use."""
        self.tower.eval()
        return torch.cat([normalize(self.texts(block), dim=1) for block in tokens.split(512)])

    def texts(self, tokens: Tensor) -> Tensor:
        """Embeddings (n, d) of tokens, numbered by the vocabulary, not normalised."""
        length = int(tokens.argmax(dim=1).max()) + 1
        return trimmed_forward(self.tower, tokens[:, :length])

    @torch.no_grad()
    def whole(
        self, config: dict[str, Any], vocabulary: Vocabulary, trunk: nn.Module, scale: float
    ) -> nn.Module:
        """Return the open_clip model: standardisation inside the head, all tokens, unseen ones
        zero.
        """
        model = open_clip.CLIP(**config)
        model.visual.trunk.load_state_dict(trunk.state_dict())
        split_tower(model.visual.trunk)[1].load_state_dict(self.late.state_dict())
        model.visual.head.load_state_dict(self.head.state_dict())
        first = model.visual.head.mlp.fc1
        first.weight /= self.spread
        first.bias -= first.weight @ self.mean
        own = {
            name: value
            for name, value in self.tower.state_dict().items()
            if name != "token_embedding.weight"
        }
        model.load_state_dict(own, strict=False)
        model.token_embedding.weight.zero_()
        model.token_embedding.weight[vocabulary.used.long()] = self.tower.token_embedding.weight
        model.logit_scale.fill_(np.log(scale))
        evaluated: nn.Module = model.eval()
        return evaluated


def teach_images(
    student: Student,
    teacher: Teacher,
    views: Sequence[Tensor],
    settings: StudentSettings,
    seed: int,
    watch: Watch,
) -> None:
    """Match the teacher as a function: on photos, and on mixtures of two, which it was not fitted
    to.
    """
    rng = np.random.default_rng([seed, 1])
    n, size = len(views[0]), settings.image_batch

    def loss(step: int) -> Tensor:
        seen, one, other = (
            rng.integers(len(views), size=size),
            rng.integers(n, size=size),
            rng.integers(n, size=size),
        )
        share = torch.from_numpy(
            np.where(rng.random(size) < 0.7, rng.uniform(0.5, 1, size), 1).astype(np.float32)
        )
        x = _picked(views, seen, one)
        x = share[:, None] * x + (1 - share[:, None]) * views[0][torch.from_numpy(other)]
        with torch.no_grad():
            wanted = in_cone(teacher.images(x), 0, settings.cone)
        return distance(student.images(x), wanted)

    with TerminalReporter().progress("Image head", settings.image_steps) as progress:
        _descend(
            student.head, loss, settings.image_steps, settings.image_rate, settings, watch, progress
        )


def teach_texts(
    student: Student,
    wanted: Tensor,
    tokens: Tensor,
    rows: Rows,
    settings: StudentSettings,
    seed: int,
    watch: Watch,
) -> None:
    """Towards the teacher's embeddings ``wanted`` (m, d - 2) of the captions ``rows`` of ``tokens``
    (m, 77).
    """
    rng = np.random.default_rng([seed, 2])
    batches = [
        batch
        for _ in range(settings.text_epochs)
        for batch in batches_by_length(tokens, rows, min(settings.text_batch, len(rows)), rng)
    ]

    def loss(step: int) -> Tensor:
        chosen = torch.from_numpy(batches[step])
        return distance(
            student.texts(tokens[chosen]), in_cone(wanted[chosen].float(), 1, settings.cone)
        )

    with TerminalReporter().progress("Text tower", len(batches)) as progress:
        _descend(student.tower, loss, len(batches), settings.text_rate, settings, watch, progress)


def tune_image_tower(
    student: Student,
    teacher: Teacher,
    maps: Sequence[Tensor],
    views: Sequence[Tensor],
    texts: Tensor,
    settings: StudentSettings,
    seed: int,
    watch: Watch,
) -> None:
    """Train the last blocks and the head towards the captions: InfoNCE, the captions' embeddings
    staying in place.

    Args:
        maps: (n, c, h, w) each: the same photos, seen differently, before the last blocks.
        views: (n, e) each: the features that the untrained blocks made of them, which the teacher
            reads.
        texts: (n, k, d), unit rows of the captions of each photo.
    """
    rng = np.random.default_rng([seed, 4])
    torch.manual_seed(seed + 4)
    with torch.no_grad():
        held = [in_cone(teacher.images(view), 0, settings.cone) for view in views]
    size = min(settings.tower_batch, len(texts))
    batches = _batches_of_photos(len(texts), size, settings.tower_epochs, rng)
    own = torch.arange(size)

    def loss(step: int) -> Tensor:
        photos = batches[step]
        seen = rng.integers(len(maps), size=size)
        student.late.eval()  # the statistics of its batch normalisation stay
        features = student.pooled(_picked(maps, seen, photos))
        noise = settings.tower_noise * student.spread * torch.randn_like(features)
        images = normalize(student.images(dropout(features, settings.tower_dropout) + noise), dim=1)
        said = rng.permuted(np.tile(np.arange(texts.shape[1]), (size, 1)), axis=1)[:, :CAPTIONS]
        contrast = torch.zeros(())
        for column in said.T:
            logits = settings.scale * images @ texts[photos, column].T
            for side in (logits, logits.T):
                contrast = contrast + cross_entropy(
                    side, own, label_smoothing=settings.tower_smoothing
                )
        pull: Tensor = settings.tower_pull * distance(images, _picked(held, seen, photos))
        mean: Tensor = contrast / (2 * said.shape[1])
        return mean + pull

    trained = nn.ModuleDict({"late": student.late, "head": student.head})
    rates = {"late": settings.tower_rate, "head": settings.tower_head_rate}
    with TerminalReporter().progress("Image tower", len(batches)) as progress:
        _descend(trained, loss, len(batches), rates, settings, watch, progress)


def _batches_of_photos(n: int, size: int, epochs: int, rng: np.random.Generator) -> Rows:
    """Return the photos of each epoch in random order, in full batches: (steps, size)."""
    return np.concatenate(
        [rng.permutation(n)[: n // size * size].reshape(-1, size) for _ in range(epochs)]
    )


def _picked(views: Sequence[Tensor], seen: Rows, photos: Rows) -> Tensor:
    """Return each photo as it is in one of its views."""
    return torch.stack([views[view][photo] for view, photo in zip(seen, photos, strict=True)])


def _descend(
    module: nn.Module,
    loss_of: Callable[[int], Tensor],
    steps: int,
    rate: float | dict[str, float],
    settings: StudentSettings,
    watch: Watch,
    progress: Progress,
) -> None:
    """Train with AdamW and a one-cycle schedule (one peak, or one by child), and keep the running
    mean of weights.
    """
    parts = (
        [(module, rate)]
        if isinstance(rate, float)
        else [(module.get_submodule(n), r) for n, r in rate.items()]
    )
    groups: list[dict[str, Any]] = []
    for part, peak in parts:
        matrices = [p for p in part.parameters() if p.ndim > 1]
        rest = [p for p in part.parameters() if p.ndim <= 1]
        groups.append({"params": matrices, "lr": peak, "weight_decay": settings.weight_decay})
        groups.append({"params": rest, "lr": peak, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    schedule = one_cycle(optimizer, [group["lr"] for group in groups], steps)
    mean = running_mean(module, 0.99)
    module.train()
    total = count = 0.0
    every = max(1, steps // _LOG_POINTS)
    for step in range(steps):
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean.update_parameters(module)
        total, count = total + loss.item(), count + 1
        progress.advance(1, f"loss {loss.item():.3f}")
        if step % every == every - 1 and step + 1 < steps:
            watch(step + 1, total / count)
            total = count = 0.0
            module.train()
    module.load_state_dict(mean.module.state_dict())
    watch(steps, total / max(1, count))


def batches_by_length(
    tokens: Tensor, rows: Rows, size: int, rng: np.random.Generator
) -> Iterator[Rows]:
    """Batches of rows of like length, in random order: little padding."""
    shuffled = rng.permutation(rows)
    length = tokens[shuffled].argmax(dim=1).numpy()
    order = shuffled[np.argsort(length, kind="stable")]
    parts = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
    for number in rng.permutation(len(parts)):
        yield parts[number]


def in_cone(embeddings: Tensor, side: int, share: float) -> Tensor:
    """Add to unit rows (n, d - 2) the constant direction of a modality (``side`` 0 or 1); return
    unit rows (n, d).
    """
    offset = torch.zeros(len(embeddings), 2)
    offset[:, side] = share**0.5
    return torch.cat([embeddings * (1 - share) ** 0.5, offset], dim=1)


def distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean of 1 - cosine."""
    return 1 - (normalize(found, dim=1) * wanted).sum(dim=1).mean()
