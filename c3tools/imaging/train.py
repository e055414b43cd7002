"""Training a generator: from the image rows of a store and their photos to a generator folder.

The network learns each photo from that photo's own embedding, transformed as the method says:
Corrupt's noise is drawn again in every epoch from (seed, epoch, key), for training inputs alone;
the validation loss that chooses the checkpoint has none. No text is seen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import devices
from ..arrays import Array, Indices, Pixels
from ..devices import Compute
from ..errors import GeneratorError
from ..io.artifact import digest_of, reserve_output
from ..reporter import SILENT, Reporter, counted
from ..seeds import generator, torch_seed
from ..store import Store
from ..store.reader import training_split
from ..training.loop import Plan, Run, Task, adamw, train_or_load
from ..transforms import Pipeline
from ..transforms.presets import TrainingPipeline
from .generator import KIND, Generator
from .model import ImageNetwork, Size, load_size
from .photos import Photos, read_photos

_MAX_VALIDATED = 512
_VALIDATION_BATCH = 64
_FEW_POSITIONS = 64
_NOT_SETTINGS = ("store", "pipeline", "output", "download", "device", "overwrite", "reporter")


class GeneratorTask(Task):
    """The training of one network.

    Args:
        train: photos to learn from, with their embeddings.
        val: other photos, which choose the checkpoint.
        pipeline: fitted; applied to the embeddings during training.
        size: of the network, with the settings of the training.
        compute: device and precision.
        applied: the steps of the pipeline that the embeddings went through already.
    """

    unit, error = "images", GeneratorError
    remedy = "Lower it with --set learning_rate=1e-4, or use --precision fp32."

    def __init__(
        self,
        train: Photos,
        val: Photos,
        pipeline: Pipeline,
        size: Size,
        compute: Compute,
        applied: int = 0,
    ) -> None:
        config = size.training
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(config.seed, "initialise"))
            network = ImageNetwork(replace(size, dim=train.rows.embeddings.shape[1]))
        self.module = self.network = network.to(compute.device)
        self.train, self.val, self.pipeline, self._rest = (
            train,
            val,
            pipeline,
            pipeline.part(applied),
        )
        self.config, self.compute = config, compute
        self.batch_size = min(config.batch_size, len(train))
        self.plan = Plan(
            config.steps,
            config.learning_rate,
            max(1, config.steps // config.validations),
            max(1, min(config.warmup, config.steps // 10)),
            clip_norm=config.clip_norm,
            ema=config.ema,
        )
        weight_decay, betas = config.weight_decay, (0.9, 0.99)
        self.optimizer = adamw(
            network.parameters(), weight_decay=weight_decay, betas=betas, fused=True
        )
        rows = val.rows
        inputs = self._rest.transform(rows.embeddings, modality=rows.modality, training=False)
        self.val_inputs = torch.from_numpy(inputs)
        data = (
            part for of in (train, val) for part in (of.rows.keys, of.rows.embeddings, of.pixels)
        )
        made_from = [
            network.config,
            pipeline.config(),
            applied,
            pipeline.record()["tensors"],
            compute.precision,
        ]
        self.identity = digest_of(made_from, *data)

    def generator(self, run: Run, record: Mapping[str, Any]) -> Generator:
        """Return the generator of a run, with what is known of the training added to its record."""
        content = {
            "preset": self.pipeline.name,
            "seed": self.config.seed,
            "photos": {"train": len(self.train), "val": len(self.val)},
            "training": {**asdict(self.config), "precision": self.compute.precision},
            "trace": [list(point) for point in run.trace],
            "validations": [[each.step, each.val_loss] for each in run.history],
            "best_val_loss": None if run.kept is None else run.kept.val_loss,
            "seconds": round(sum(each.seconds + each.facts["seconds"] for each in run.history), 1),
        }
        return Generator(self.network, self.pipeline, {**record, **content}, self.compute)

    def batch(self, number: int) -> tuple[int, Indices]:
        """Return the epoch of a step, and the rows of its batch: each epoch has every photo once,
        but for a rest.
        """
        epoch, place = divmod(number, len(self.train) // self.batch_size)
        order = self.order(len(self.train), self.config.seed, "order", epoch)
        return epoch, order[place * self.batch_size :][: self.batch_size]

    def step(self, number: int, update: Callable[[Tensor | float], float]) -> tuple[float, int]:
        """Learn from one batch of photos."""
        config, (epoch, chosen) = self.config, self.batch(number)
        rng, n, rows = generator(config.seed, "step", number), len(chosen), self.train.rows
        flips, shares, withhold = (
            rng.random(n) < 0.5,
            rng.standard_normal(n),
            rng.random(n) < config.drop,
        )
        torch.manual_seed(int(rng.integers(2**62)))
        images = _to_network(self.train.pixels[chosen])
        images = torch.where(torch.from_numpy(flips)[:, None, None, None], images.flip(3), images)
        inputs = self._rest.transform(
            rows.embeddings[chosen],
            modality=rows.modality,
            training=True,
            keys=[rows.keys[row] for row in chosen],
            items=[rows.items[row] for row in chosen],
            seed=config.seed,
            epoch=epoch,
        )
        noise = torch.randn(images.shape)
        return update(
            self._loss(images, noise, shares, torch.from_numpy(inputs), torch.from_numpy(withhold))
        ), n

    def validate(self) -> tuple[float, dict[str, Any]]:
        """Return the mean squared error of the velocity on the validation photos, without Corrupt's
        noise or flips.

        Times are spread evenly over their distribution, and times and noise are the same in every
        validation.
        """
        n, started = len(self.val), time.perf_counter()
        rng = generator(self.config.seed, "validation")
        shares = np.array([NormalDist().inv_cdf(share) for share in (rng.permutation(n) + 0.5) / n])
        noise = torch.from_numpy(
            rng.standard_normal((n, 3, *self.val.pixels.shape[1:3]), np.float32)
        )
        images, withhold, total = (
            _to_network(self.val.pixels),
            torch.zeros(n, dtype=torch.bool),
            0.0,
        )
        for start in range(0, n, _VALIDATION_BATCH):
            rows = slice(start, start + _VALIDATION_BATCH)
            loss = self._loss(
                images[rows], noise[rows], shares[rows], self.val_inputs[rows], withhold[rows]
            )
            total += float(loss) * len(images[rows])
        return total / n, {"seconds": time.perf_counter() - started}

    def _loss(
        self, images: Tensor, noise: Tensor, shares: Array, inputs: Tensor, withhold: Tensor
    ) -> Tensor:
        """Return the mean squared error of the predicted velocity ``noise - image``.

        Times are logit-normal, which favours the middle of the way; ``shares`` are their standard
        normal numbers.
        """
        device = self.compute.device
        times = torch.tensor(
            [1 / (1 + math.exp(-share)) for share in shares], dtype=torch.float32
        ).to(device)
        images, noise = images.to(device), noise.to(device)
        t = times[:, None, None, None]
        with self.compute.autocast(), self._attention():
            velocity = self.network(
                (1 - t) * images + t * noise, times, inputs.to(device), withhold.to(device)
            )
        return F.mse_loss(velocity.float(), noise - images)

    def _attention(self) -> AbstractContextManager[None]:
        """Return the context in which attention is computed.

        On a CPU in bf16, the backward pass of torch's fused attention is slow where there are few
        positions: without it, a step of size ``tiny`` takes 14 % less time. For 256 positions (size
        ``small``) it is the faster one.
        """
        config, compute = self.network.config, self.compute
        level = list(config.attention).index(True) if any(config.attention) else 0
        positions = (config.pixels // config.patch // 2**level) ** 2
        few = (compute.device_type, compute.precision) == (
            "cpu",
            "bf16",
        ) and positions <= _FEW_POSITIONS
        return sdpa_kernel(SDPBackend.MATH) if few else nullcontext()


def _to_network(pixels: Pixels) -> Tensor:
    """Return pixels (n, height, width, 3) as the network takes them: float32 (n, 3, height, width),
    -1 to 1.

    Contiguous: the layout of the pixels (channels last) would stay that of all layers, whose group
    norms take three times as long in it on a CPU.
    """
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().contiguous().div_(127.5).sub_(1)


def train_generator(
    store: Store | str | Path = "c3-store",
    pipeline: Pipeline | None = None,
    *,
    output: str | Path = "c3-generator",
    preset: str | None = None,
    sigma: float | str | None = None,
    size: str = "tiny",
    set: Sequence[str] = (),
    steps: int | None = None,
    train_split: str = "train",
    download: bool = False,
    seed: int = 0,
    device: str | None = None,
    precision: str = "auto",
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> Generator:
    """Train an image generator on the photos of a store and their image embeddings, and write it to
    ``output``.

    No text is read. The generator is trained to make each photo from the embedding of this photo;
    later it gets the embedding of a text instead. Both are collapsed by the mean of their own
    modality (C3, Zhang et al., ICLR 2024, trained image to image). The state of the run is saved in
    a folder beside ``output``. The same call continues an interrupted run, and returns the
    generator of a finished run.

    Args:
        store: See `embed`.
        pipeline: See `train_captioner`.
        output: The folder to write the generator to.
        preset: The preset: c3, c1, c2-collapse, c2-corrupt, lafite, ... By default c3.
        sigma: Standard deviation of the noise, per dimension. auto: derived from the distance of
            photos to their nearest neighbour. pairs: from the cosine of at least 10 photos with
            their captions, those of the val split or of all splits but test. By default auto.
        size: Size of the images: tiny (32 pixels, for a CPU), small (64 pixels) or base (128
            pixels, for a GPU).
        set: Change settings of ``size``, such as learning_rate=5e-4 or batch_size=32.
        steps: Number of training steps. The default depends on ``size``.
        train_split: The split to train on.
        download: Download photos that are given by URL.
        seed: Seed for all random numbers.
        device: See `connect_heads`.
        precision: See `embed`.
        overwrite: See `connect_heads`.
        reporter: Shows messages and progress.

    Returns:
        The generator, as `Generator.load` reads it from ``output``.

    Raises:
        StoreError: if the store has no images.
        GeneratorError: if photos are missing, or settings contradict each other.
        OutputError: if ``output`` contains another generator or other files, or another run is
            writing to it.
        TransformError: if sigma, the preset or the pipeline cannot be used.
        MissingExtraError: if diffusers is not installed.
    """
    settings = {name: value for name, value in locals().items() if name not in _NOT_SETTINGS}
    store = Store.open(store, reporter=reporter)
    asked = TrainingPipeline.choose(store, pipeline, preset, sigma, reporter=reporter)
    chosen = load_size(size, set)
    steps = chosen.training.steps if steps is None else steps
    chosen = replace(chosen, training=replace(chosen.training, seed=seed, steps=steps))
    output, compute = Path(output), devices.pick(device, precision)
    settings |= {
        "preset": asked.preset,
        "sigma": asked.sigma,
        "precision": compute.precision,
        "steps": steps,
    }
    with reserve_output(output, KIND, settings, overwrite=overwrite, reporter=reporter) as target:
        train, val, notes = training_photos(
            store, chosen.pixels, train_split, download=download, reporter=reporter
        )
        pipeline, more = asked.fit(store, train_split, "image")
        notes += more
        if steps < (usual := load_size(size).training.steps) / 10:
            few = counted(steps, "step is", "steps are")
            notes.append(
                f"{few} too few for images that show anything: the size {size} has {usual:,}."
            )
        for note in notes:
            reporter.message(note)
        task = GeneratorTask(train, val, pipeline, chosen, compute, asked.applied)
        record = {
            "model": dict(store.info.model),
            "sigma": float(pipeline.sigma or 0),
            "size": size,
            "notes": notes,
        }
        return train_or_load(
            target,
            task,
            partial(Generator.load, compute=compute),
            lambda run, made_from: task.generator(run, {**record, "made_from": made_from}).save,
            label=f"Training {pipeline.name}",
        )


def training_photos(
    store: Store,
    pixels: int,
    split: str = "train",
    *,
    download: bool = False,
    reporter: Reporter = SILENT,
) -> tuple[Photos, Photos, list[str]]:
    """Read the photos to learn from and others to validate on, with what the user should know about
    them.

    Where the store has no ``val`` split, a tenth of the training photos (by a stable hash of their
    keys) is held out.

    Raises:
        StoreError: if the store has no images.
        GeneratorError: if the split has no photos, or too few to hold some out, or none can be
            read.
    """
    train, val, notes = training_split(store, "image", split, error=GeneratorError)
    if not len(train) or not len(val):
        raise GeneratorError(
            f"Training needs photos for training and for validation, but there are {len(train)} "
            f"and {len(val)}.",
            remedy="Embed more photos.",
        )
    val = val.select(np.sort(val.hash_order("validated")[:_MAX_VALIDATED]))
    learned, validated = (
        read_photos(store, rows, pixels, download=download, reporter=reporter)
        for rows in (train, val)
    )
    return learned, validated, [*notes, *filter(None, [learned.unread, validated.unread])]
