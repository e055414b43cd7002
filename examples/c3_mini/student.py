"""The student: c3-mini's own text tower and image head, taught to be where the teacher's are, then trained on pairs.

Two constant directions are added to the teacher's space, one per modality: the cones that large towers start in. The
student begins in such cones, too (offsets on its last layers), and is trained at the logit scale of a trained CLIP;
how much of the gap survives is measured, not set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from teacher import Teacher, one_cycle, running_mean
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from c3tools.encoders.texts import trimmed_forward
from c3tools.progress import Tracker, track

Rows = npt.NDArray[np.int64]
_START_CONE = 1.33  # offset of the outputs at the start, as a multiple of their spread: a gap of 1.13
_LOG_EVERY = 50  # steps
Watch = Callable[[int, float], None]


@dataclass(frozen=True)
class StudentSettings:
    """How the student is trained; chosen on the validation photos of Flickr8k.

    Attributes:
        scale: fixed logit scale.
        cone: share of the squared length of a target that is the constant direction of its modality.
        image_steps: of the image head, towards the teacher's embeddings of mixed photos.
        image_batch: photos in a step of that.
        image_rate: peak learning rate of that.
        text_epochs: over all captions, towards the teacher's embeddings.
        text_batch: captions in a step of that.
        text_rate: peak learning rate of that.
        pair_epochs: over the photos, InfoNCE and distillation together.
        pair_batch: photos, each with one of its captions, in a step of that.
        pair_rate: peak learning rate of that.
        pull: weight of the distillation in that.
        weight_decay: of AdamW.
    """

    scale: float = 100.0
    cone: float = 0.4
    image_steps: int = 3000
    image_batch: int = 1024
    image_rate: float = 2e-3
    text_epochs: int = 4
    text_batch: int = 512
    text_rate: float = 1e-3
    pair_epochs: int = 10
    pair_batch: int = 512
    pair_rate: float = 1e-4
    pull: float = 5.0
    weight_decay: float = 0.05


class Vocabulary:
    """The tokens that the training captions have, numbered without gaps; the order of their numbers stays.

    So the end-of-text token stays the highest, by which open_clip finds it.
    """

    def __init__(self, tokens: Tensor) -> None:
        self.used = torch.unique(tokens)  # sorted
        self._number = torch.zeros(int(self.used[-1]) + 1, dtype=torch.long)
        self._number[self.used.long()] = torch.arange(len(self.used))

    def __call__(self, tokens: Tensor) -> Tensor:
        """New numbers of these tokens; one that no training caption has becomes number 0, which is padding."""
        return self._number[tokens.long()]


def text_inputs(captions: list[str]) -> Tensor:
    """Token ids, int32 (m, 77)."""
    tokenizer = open_clip.SimpleTokenizer()
    return torch.cat([tokenizer(captions[i : i + 4096]).to(torch.int32) for i in range(0, len(captions), 4096)])


class Student(nn.Module):
    """The trained parts: the image head on trunk features, and the text tower.

    Args:
        config: of the open_clip model.
        vocabulary: of the training captions.
        features: image features (n, e) of training photos, which the head's input is standardised by.
        seed: of the weights.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, config: dict, vocabulary: Vocabulary, features: Tensor, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        small = {**config, "text_cfg": {**config["text_cfg"], "vocab_size": len(vocabulary.used)}}
        model = open_clip.CLIP(**small)
        self.head = model.visual.head
        del model.visual
        self.tower = model
        self.register_buffer("mean", features.mean(dim=0))
        self.register_buffer("spread", features.std(dim=0) + 1e-3)

    @torch.no_grad()
    def start_in_cones(self, features: Tensor, tokens: Tensor) -> None:
        """Offsets on both last layers: the last axis but one for the image head, the last for the text tower."""
        dim = self.head.mlp.fc2.out_features
        for outputs, axis in ((self.images(features), dim - 2), (self.texts(tokens), dim - 1)):
            spread = (outputs - outputs.mean(dim=0)).square().sum(dim=1).mean().sqrt()
            offset = _START_CONE * spread * torch.eye(dim)[axis] - outputs.mean(dim=0)
            if axis == dim - 2:
                self.head.mlp.fc2.bias += offset
            else:
                self.tower.ln_final.bias += torch.linalg.solve(self.tower.text_projection.T, offset)

    def images(self, features: Tensor) -> Tensor:
        """Embeddings (n, d) of trunk features (n, e), not normalised."""
        return self.head((features - self.mean) / self.spread)

    def texts(self, tokens: Tensor) -> Tensor:
        """Embeddings (n, d) of tokens, numbered by the vocabulary, not normalised."""
        length = int(tokens.argmax(dim=1).max()) + 1
        return trimmed_forward(self.tower, tokens[:, :length])

    @torch.no_grad()
    def whole(self, config: dict, vocabulary: Vocabulary, trunk: nn.Module, scale: float) -> nn.Module:
        """The open_clip model: standardisation inside the head, every token of the tokenizer; unseen ones are zero."""
        model = open_clip.CLIP(**config)
        model.visual.trunk.load_state_dict(trunk.state_dict())
        model.visual.head.load_state_dict(self.head.state_dict())
        first = model.visual.head.mlp.fc1
        first.weight /= self.spread
        first.bias -= first.weight @ self.mean
        own = {name: value for name, value in self.tower.state_dict().items() if name != "token_embedding.weight"}
        model.load_state_dict(own, strict=False)
        model.token_embedding.weight.zero_()
        model.token_embedding.weight[vocabulary.used.long()] = self.tower.token_embedding.weight
        model.logit_scale.fill_(np.log(scale))
        return model.eval()


def teach_images(
    student: Student, teacher: Teacher, views: Sequence[Tensor], settings: StudentSettings, seed: int, watch: Watch
) -> None:
    """Match the teacher as a function: on photos, and on mixtures of two, which it was not fitted to."""
    rng = np.random.default_rng([seed, 1])
    n, size = len(views[0]), settings.image_batch

    def loss(step: int) -> Tensor:
        seen, one, other = rng.integers(len(views), size=size), rng.integers(n, size=size), rng.integers(n, size=size)
        share = torch.from_numpy(np.where(rng.random(size) < 0.7, rng.uniform(0.5, 1, size), 1).astype(np.float32))
        x = torch.stack([views[view][photo] for view, photo in zip(seen, one, strict=True)])
        x = share[:, None] * x + (1 - share[:, None]) * views[0][torch.from_numpy(other)]
        with torch.no_grad():
            wanted = in_cone(teacher.images(x), 0, settings.cone)
        return distance(student.images(x), wanted)

    with track("Image head", settings.image_steps) as tracker:
        _descend(student.head, loss, settings.image_steps, settings.image_rate, settings, watch, tracker)


def teach_texts(
    student: Student, wanted: Tensor, tokens: Tensor, rows: Rows, settings: StudentSettings, seed: int, watch: Watch
) -> None:
    """Towards the teacher's embeddings ``wanted`` (m, d - 2) of the captions ``rows`` of ``tokens`` (m, 77)."""
    rng = np.random.default_rng([seed, 2])
    batches = [
        batch
        for _ in range(settings.text_epochs)
        for batch in batches_by_length(tokens, rows, min(settings.text_batch, len(rows)), rng)
    ]

    def loss(step: int) -> Tensor:
        chosen = torch.from_numpy(batches[step])
        return distance(student.texts(tokens[chosen]), in_cone(wanted[chosen].float(), 1, settings.cone))

    with track("Text tower", len(batches)) as tracker:
        _descend(student.tower, loss, len(batches), settings.text_rate, settings, watch, tracker)


def train_on_pairs(
    student: Student,
    teacher: Teacher,
    views: Sequence[Tensor],
    wanted: Tensor,
    tokens: Tensor,
    captions: Rows,
    settings: StudentSettings,
    seed: int,
    watch: Watch,
) -> None:
    """InfoNCE on photos and their captions (rows ``captions`` (n, k) of ``tokens``), held near the teacher."""
    rng = np.random.default_rng([seed, 3])
    size = min(settings.pair_batch, len(captions))
    steps = settings.pair_epochs * (len(captions) // size)
    order: list[int] = []

    def loss(step: int) -> Tensor:
        if len(order) < size:
            order[:] = rng.permutation(len(captions)).tolist()
        photos = np.array([order.pop() for _ in range(size)])
        seen = rng.integers(len(views), size=size)
        x = torch.stack([views[view][photo] for view, photo in zip(seen, photos, strict=True)])
        chosen = torch.from_numpy(captions[photos, rng.integers(captions.shape[1], size=size)])
        with torch.no_grad():
            image_target = in_cone(teacher.images(x), 0, settings.cone)
        text_target = in_cone(wanted[chosen].float(), 1, settings.cone)
        images, texts = student.images(x), student.texts(tokens[chosen])
        logits = settings.scale * normalize(images, dim=1) @ normalize(texts, dim=1).T
        own = torch.arange(size)
        contrast = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
        return contrast + settings.pull * (distance(images, image_target) + distance(texts, text_target))

    with track("Pairs", steps) as tracker:
        _descend(student, loss, steps, settings.pair_rate, settings, watch, tracker)


def _descend(
    module: nn.Module,
    loss_of: Callable[[int], Tensor],
    steps: int,
    rate: float,
    settings: StudentSettings,
    watch: Watch,
    tracker: Tracker,
) -> None:
    """AdamW, a one-cycle schedule, and the running mean of the weights in the end."""
    matrices = [p for p in module.parameters() if p.ndim > 1]
    rest = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    schedule = one_cycle(optimizer, rate, steps)
    mean = running_mean(module, 0.99)
    module.train()
    total = count = 0.0
    for step in range(steps):
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean.update_parameters(module)
        total, count = total + loss.item(), count + 1
        tracker.advance(1, f"loss {loss.item():.3f}")
        if step % _LOG_EVERY == _LOG_EVERY - 1 and step + 1 < steps:
            watch(step + 1, total / count)
            total = count = 0.0
            module.train()
    module.load_state_dict(mean.module.state_dict())
    watch(steps, total / max(1, count))


def batches_by_length(tokens: Tensor, rows: Rows, size: int, rng: np.random.Generator) -> Iterator[Rows]:
    """Batches of rows of like length, in random order: little padding."""
    shuffled = rng.permutation(rows)
    length = tokens[shuffled].argmax(dim=1).numpy()
    order = shuffled[np.argsort(length, kind="stable")]
    parts = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
    for number in rng.permutation(len(parts)):
        yield parts[number]


def in_cone(embeddings: Tensor, side: int, share: float) -> Tensor:
    """Unit rows (n, d - 2) with the constant direction of a modality (``side`` 0 or 1) added: unit rows (n, d)."""
    offset = torch.zeros(len(embeddings), 2)
    offset[:, side] = share**0.5
    return torch.cat([embeddings * (1 - share) ** 0.5, offset], dim=1)


def distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean of 1 - cosine."""
    return 1 - (normalize(found, dim=1) * wanted).sum(dim=1).mean()
