"""Contrastive training of two towers, shared by heads on features and whole models.

With unit rows a_i, b_j (n, d), z_ij = s a_i . b_j and s the logit scale (the inverse temperature),
the loss is the mean over i of -log softmax_j(z_ij)[i], and of the same for columns, averaged
(Radford et al., 2021). Besides, ``close_gap`` times (Grassucci et al., ICLR 2026)

    mean over i of |a_i - b_i|^2 + log mean over i != j of exp(-2 |c_i - c_j|^2)

draws pairs together, and spreads their centroids c_i, the unit vectors along a_i + b_i.

Entries of one item that are not its own pair (a second caption of an image, the same sentence under
two images) are false negatives: they are left out of both.

Everything random in a step depends on (seed, step) alone, so that a run that was killed continues
exactly. The checkpoint is the epoch with the highest recall@1 (mean of both directions) among the
validation pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arrays import Indices, Matrix
from ..corpus.splits import ALL
from ..devices import Compute
from ..errors import ConnectError
from ..io.artifact import Target, digest_of, writing
from ..io.files import write_json_atomically
from ..pages.figures import save_figure
from ..result_table import Table
from ..seeds import torch_seed
from ..training.loop import (
    FINISHED,
    Task,
    TrainingPlan,
    TrainingRun,
    Validation,
    adamw,
    train_or_load,
)
from ..training.sizes import require_valid
from .geometry import geometry_figure, measure
from .training_pairs import PairInputs

RECORD_FILE = "connect.json"
LOG_FILE = "geometry.json"
_BETAS = (0.9, 0.98)
_WEIGHT_DECAY = 0.05
_WARMUP = 0.05  # of the steps
_SAMPLED_ROWS = 1024
_EMBED_ROWS = 128
_UNIT_TOLERANCE = 1e-3
_MAX_LOGIT_SCALE = 100.0  # of a learned scale, as in CLIP
_LEARNED_FROM = 1 / 0.07
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings of the training of any two towers; see the options of `connect_heads`.

    A field that is added needs the default that trains as before, so that what was trained before
    is still known.
    """

    logit_scale: str
    close_gap: float
    batch_size: int
    chunk: int | None
    epochs: int
    learning_rate: float
    patience: int
    train_split: str
    seed: int

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ConnectError(
                f"A batch of {self.batch_size} contains no negatives.",
                remedy="Use at least 2 pairs.",
            )
        ContrastiveLoss(self.logit_scale)
        require_valid(
            self,
            positive=("learning_rate",),
            not_negative=("close_gap",),
            error=ConnectError,
        )


class ContrastiveLoss(nn.Module):
    """The loss, with its logit scale (kept as a logarithm).

    Args:
        scale: ``100``, ``learned`` (from 14.3) or ``learned:20``.
        close_gap: weight of the terms that close the gap.

    Raises:
        ConnectError: for another scale.
    """

    log_scale: Tensor

    def __init__(self, scale: str, close_gap: float = 0.0) -> None:
        super().__init__()
        if scale == "learned":
            scale = f"learned:{_LEARNED_FROM}"
        is_learned = scale.startswith("learned:")
        limit = _MAX_LOGIT_SCALE if is_learned else math.inf
        try:
            value = float(scale.removeprefix("learned:"))
        except ValueError:
            value = math.nan
        if not 0 < value < limit:
            raise ConnectError(
                f"{scale!r} is not a logit scale.",
                remedy=f"For example 100, learned, or learned:20 (below {_MAX_LOGIT_SCALE:g}).",
            )
        self.close_gap = close_gap
        self.limit = math.log(limit)  # of log_scale
        self.log_scale = nn.Parameter(torch.tensor(math.log(value)), requires_grad=is_learned)

    @property
    def logit_scale(self) -> float:
        """The present logit scale."""
        return math.exp(float(self.log_scale.detach()))

    def forward(self, first: Tensor, second: Tensor, same: Tensor) -> Tensor:
        """Return the loss of pairs of unit rows (n, d), of which ``same`` (n, n) tells those of one
        item.
        """
        logits = self.log_scale.exp() * (first @ second.T)  # (n, n)
        is_pair = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(same & ~is_pair, -torch.inf)
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def gap_terms(self, first: Tensor, second: Tensor, same: Tensor) -> Tensor:
        """Return ``close_gap`` times the two terms that close the gap; the arguments are those of
        `forward`.
        """
        centroids = F.normalize(first + second, dim=1)
        near = (-4 + 4 * (centroids @ centroids.T)).exp()  # exp(-2 |c_i - c_j|^2) of unit rows
        is_unrelated = ~(same | same.T)
        spread = near.new_zeros(())
        if is_unrelated.any():
            spread = near[is_unrelated].mean().log()
        distance = (first - second).square().sum(dim=1).mean()
        return self.close_gap * (distance + spread)


class TwoTowers(nn.Module):
    """Two modules that map the inputs of two sides into one space.

    Normalisation layers with running statistics stay as they are: a batch in chunks has no
    statistics of its own.
    """

    def __init__(self, first: nn.Module, second: nn.Module, compute: Compute) -> None:
        super().__init__()
        self.sides = nn.ModuleList([first, second])
        self.compute = compute
        self.to(compute.device)

    def train(self, mode: bool = True) -> TwoTowers:
        """Set training mode, except for batch normalisation."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def project(self, inputs: Tensor, side: int) -> Tensor:
        """Return float32 embeddings (n, d), not normalised, of inputs of side 0 or 1."""
        with self.compute.autocast():
            embeddings: Tensor = self.sides[side](inputs.to(self.compute.device))
        return embeddings.float()

    def embed(self, inputs: Tensor, side: int) -> Tensor:
        """Return unit rows (n, d), normalised in float32 at any precision."""
        return F.normalize(self.project(inputs, side), dim=1)

    @torch.inference_mode()
    def embed_pairs(self, pairs: PairInputs) -> tuple[Matrix, Matrix, Indices]:
        """Embed all pairs by the present weights, every item once; leaves the towers in evaluation
        mode.

        Returns:
            Unit rows of the items (n, d) and of the second side (p, d), and the item of each pair,
            int64 (p,).
        """
        self.eval()

        def embed_side(side: int, numbers: Indices) -> Matrix:
            blocks = []
            for start in range(0, len(numbers), _EMBED_ROWS):
                inputs = pairs.inputs[side].read(numbers[start : start + _EMBED_ROWS])
                blocks.append(self.embed(inputs, side).cpu().numpy())
            return np.concatenate(blocks)

        items = np.searchsorted(pairs.item_rows, pairs.rows[0])
        return embed_side(0, pairs.item_rows), embed_side(1, pairs.rows[1]), items

    def backward(
        self,
        loss: ContrastiveLoss,
        inputs: tuple[Tensor, Tensor],
        ids: Tensor,
        *,
        chunk: int | None = None,
        scope: tuple[int, ...] = (0,),
    ) -> float:
        """Add the gradient of the loss of one batch to the weights, and return the contrastive
        loss.

        The loss joins every pair of the batch with every other, so its gradient cannot be added up
        from smaller batches. It can be split in two (gradient caching; Gao et al., RepL4NLP 2021):
        embed the batch in chunks without keeping activations, take the gradient of the loss with
        respect to the embeddings, then embed each chunk again and pass its part of that gradient on
        to the weights. What is random in a forward pass is drawn from the chunk's own seed, so that
        both passes agree.

        Args:
            loss: gets its gradient too.
            inputs: of both sides, (n, ...) each, row by row a pair.
            ids: int64 (2, n), equal on a side if the content is.
            chunk: pairs embedded at a time with their activations; all by default.
            scope: numbers that what is random depends on, such as (seed, step).
        """
        pair_count = ids.shape[1]
        chunk_size = chunk or pair_count
        chunks = [slice(start, start + chunk_size) for start in range(0, pair_count, chunk_size)]
        is_whole = len(chunks) == 1

        # Without its name, the states of all GPUs of the machine would be read
        gpus = [self.compute.device] if self.compute.device_type == "cuda" else []

        def embed(side: int, number: int) -> Tensor:
            with torch.random.fork_rng(devices=gpus):
                torch.manual_seed(torch_seed(scope[0], "step", *scope[1:], 0, side, number))
                return self.embed(inputs[side][chunks[number]], side)

        # Embed the batch; a single chunk keeps its activations
        numbers = range(len(chunks))
        with torch.set_grad_enabled(is_whole):
            embedded = [[embed(side, number) for number in numbers] for side in (0, 1)]

        # The gradient of the loss with respect to the embeddings
        first = torch.cat(embedded[0]).detach().requires_grad_()
        second = torch.cat(embedded[1]).detach().requires_grad_()
        same = (ids[:, :, None] == ids[:, None]).any(dim=0).to(first.device)
        contrastive = loss(first, second, same)
        total = contrastive
        if loss.close_gap:
            total = contrastive + loss.gap_terms(first, second, same)
        total.backward()

        # Pass it on to the weights, chunk by chunk
        for number in numbers:
            for side, leaf in enumerate((first, second)):
                embeddings = embedded[side][number] if is_whole else embed(side, number)
                assert leaf.grad is not None
                if embeddings.requires_grad:  # a frozen tower has no gradient to pass on
                    embeddings.backward(leaf.grad[chunks[number]])
        return float(contrastive.detach())


class PairTask(Task):
    """The training of two towers on pairs.

    Args:
        towers: their parameters that require a gradient are trained.
        train_pairs: pairs to learn from.
        val_pairs: pairs to choose the checkpoint by.
        settings: of the training.
        names: of the two modalities.
        made_from: JSON values or a dataclass that the run depends on beside these.

    Attributes:
        settings: with the batch size that is used.
        loss: has the logit scale.

    Raises:
        ConnectError: if there are too few pairs.
    """

    unit, error = "pairs", ConnectError
    remedy = (
        "Lower --learning-rate, and check the inputs and the weights for NaN, infinity and very "
        "large values."
    )

    def __init__(
        self,
        towers: TwoTowers,
        train_pairs: PairInputs,
        val_pairs: PairInputs,
        settings: TrainingSettings,
        names: tuple[str, str] = ("image", "text"),
        made_from: object = None,
    ) -> None:
        if min(train_pairs.distinct_count, val_pairs.distinct_count) < 2:
            raise ConnectError(
                f"There are {len(train_pairs):,} training and {len(val_pairs):,} validation pairs; "
                f"each kind needs at least 2, of different items.",
                remedy="Add more pairs, and check that the keys of the two modalities match.",
            )
        self.train = train_pairs
        self.val = val_pairs
        self.names = names

        # What is trained: the towers, and the scale of the loss
        self.towers = towers
        self.loss = ContrastiveLoss(settings.logit_scale, settings.close_gap)
        self.loss.to(towers.compute.device)
        self.module = nn.ModuleDict({"towers": towers, "loss": self.loss})
        self.optimizer = adamw(self.module.parameters(), weight_decay=_WEIGHT_DECAY, betas=_BETAS)

        # Each epoch has the full batches of its order, and a validation at its end
        settings = replace(settings, batch_size=min(settings.batch_size, len(train_pairs)))
        self.settings = settings
        self.steps_per_epoch = len(train_pairs) // settings.batch_size
        steps = settings.epochs * self.steps_per_epoch
        self.plan = TrainingPlan(
            steps=steps,
            learning_rate=settings.learning_rate,
            validate_every=self.steps_per_epoch,
            rise=max(1, round(_WARMUP * steps)),
            patience=settings.patience,
            start="report",
        )

        # A run is continued with the same settings and pairs, told by some of their inputs
        content: list[object] = [settings, towers.compute.precision, names, made_from]
        for pairs in (train_pairs, val_pairs):
            for numbers, inputs in zip(pairs.rows, pairs.inputs, strict=True):
                sampled = numbers[:: max(1, len(numbers) // _SAMPLED_ROWS)]
                content += [numbers, inputs.read(sampled).numpy()]
        self.identity = digest_of(*content)

        # The inputs of the next step are read while one is taken, see `step`
        self._loader = ThreadPoolExecutor(1)
        self._loading: Future[tuple[tuple[Tensor, Tensor], Tensor]] | None = None

    def step(self, number: int, update: Callable[[Tensor | float], float]) -> tuple[float, int]:
        """Learn from one batch of pairs, while the next one is read."""
        loading = self._loading or self._loader.submit(self._load, number)
        inputs, ids = loading.result()
        self._loading = None
        if number + 1 < self.plan.steps:
            self._loading = self._loader.submit(self._load, number + 1)
        loss = self.towers.backward(
            self.loss,
            inputs,
            ids,
            chunk=self.settings.chunk,
            scope=(self.settings.seed, number),
        )
        reported_loss = update(loss)
        with torch.no_grad():
            self.loss.log_scale.clamp_(max=self.loss.limit)
        return reported_loss, self.settings.batch_size

    def _load(self, step: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return the inputs of a step and their ids; what is left over of an epoch's full batches
        is not used in it.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        pairs = self.train
        batch_size = self.settings.batch_size
        order = self.order(len(pairs), self.settings.seed, "pairs", epoch)
        batch = order[place * batch_size :][:batch_size]
        inputs = (
            pairs.inputs[0].read(pairs.rows[0, batch], epoch),
            pairs.inputs[1].read(pairs.rows[1, batch], epoch),
        )
        return inputs, torch.from_numpy(pairs.ids[:, batch])

    def validate(self) -> tuple[float, dict[str, Any]]:
        """Return the recall@1 of the validation pairs, negative, and their geometry; NaN if a row
        is no unit vector.
        """
        first, second, items = self.towers.embed_pairs(self.val)
        # Outputs so large that their norm overflows become rows of zeros
        if not (_all_unit(first) and _all_unit(second)):
            return math.nan, {}
        geometry = measure(first, second, items, self.names)
        forward, backward = (recall["recall@1"] for recall in geometry["recall"].values())
        return -(forward + backward) / 2, {"logit_scale": self.loss.logit_scale, **geometry}

    def note(self, latest: Validation) -> str:
        """Return recall and gap of the last validation."""
        return f"recall@1 {-latest.val_loss:.3f}, gap {latest.facts['gap']:.2f}"

    def log(self, run: TrainingRun) -> list[dict[str, Any]]:
        """Return the log of the geometry, from the initial weights on, as JSON values."""
        log = []
        for point in [run.start, *run.history] if run.start else run.history:
            loss = None if math.isnan(point.train_loss) else point.train_loss
            log.append({"step": point.step, "loss": loss, **point.facts})
        return log

    def connect(
        self,
        target: Target,
        pairs: PairInputs,
        record: Mapping[str, Any],
        *,
        save: Callable[[Path], None],
        load: Callable[[Path], T],
    ) -> T:
        """Train the towers and write the result, unless it is there already; return what is loaded
        from the folder.

        Args:
            target: the folder of the result.
            pairs: all pairs, of which those of val and test are scored.
            record: about model and data, as JSON values.
            save: writes the towers into a folder.
            load: reads the result, and raises a `C3Error` if it is damaged.
        """
        reporter = target.reporter

        def result(run: TrainingRun, made_from: dict[str, Any]) -> Callable[[Path], None]:
            kept = run.kept
            log = self.log(run)
            assert kept is not None

            # Say what makes the result doubtful
            if run.outcome != FINISHED:
                reporter.message(
                    f"The training {run.outcome} at step {run.step:,}; the weights of step "
                    f"{kept.step:,} are kept."
                )
            if -kept.val_loss <= 3 / len(self.val.item_rows):
                reporter.message(
                    "Retrieval among the validation pairs is near chance. Check that paired rows "
                    "belong together, and try a lower --learning-rate or --logit-scale."
                )

            # Score with the weights that are kept, and describe the run
            content = {
                **record,
                "made_from": made_from,
                "pairs": {"train": len(self.train), "val": len(self.val)},
                "settings": asdict(self.settings),
                "outcome": run.outcome,
                "steps": run.step,
                "kept_step": kept.step,
                "recall@1": -kept.val_loss,
                "logit_scale": kept.facts["logit_scale"],
                "seconds": round(sum(point.seconds for point in run.history), 1),
                "scores": self._scores(pairs),
            }

            def write(folder: Path) -> None:
                with writing(folder, target.kind, {"record": content}, keep=target.there) as new:
                    save(new)
                    write_json_atomically(new / LOG_FILE, {"kept_step": kept.step, "points": log})
                    save_figure(geometry_figure(log, self.names, kept.step), new / "geometry.svg")

            return write

        return train_or_load(target, self, load, result, label="Connecting")

    def _scores(self, pairs: PairInputs) -> dict[str, Any]:
        """Return the measures of the pairs of val and test that were not learned from, by split."""
        scores = {}
        for split in ("val", "test"):
            scored = pairs.where(split)
            if self.settings.train_split.lower() in (split, ALL):
                scored = scored.select(~np.isin(scored.items, self.train.items))
            if len(scored.item_rows) > 1:
                scores[split] = measure(*self.towers.embed_pairs(scored), self.names)
        return scores


def _all_unit(rows: Matrix) -> bool:
    """Return whether all rows (n, d) have the norm 1; NaN has not."""
    norms = np.linalg.norm(rows, axis=1)
    return bool(np.allclose(norms, 1, atol=_UNIT_TOLERANCE))


def scores_table(record: Mapping[str, Any]) -> Table:
    """Return the scores in the record of a training by split and direction: recalls in percent, the
    length of the gap, and the mean cosine of paired and of unpaired rows.
    """
    recalls = ("recall@1", "recall@5", "recall@10")
    rows = []
    for split, score in record["scores"].items():
        geometry = [f"{score[name]:.3f}" for name in ("gap", "paired_cosine", "unpaired_cosine")]
        for direction, recall in score["recall"].items():
            in_percent = [f"{100 * recall[name]:.1f}%" for name in recalls]
            rows.append([split, direction.replace("_to_", " → "), *in_percent, *geometry])
    columns = ["split", "direction", "R@1", "R@5", "R@10", "gap", "paired", "unpaired"]
    return Table(columns, rows, left=["direction"])
