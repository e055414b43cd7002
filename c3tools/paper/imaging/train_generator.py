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
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ... import devices
from ...arrays import Array, Indices, Pixels
from ...choices import GeneratorSize, PositiveInt, Precision, checked
from ...devices import Compute
from ...errors import GeneratorError
from ...io.artifact import digest_of, reserve_output
from ...lists import as_list
from ...reporter import SILENT, Reporter, counted
from ...seeds import generator, torch_seed
from ...store import Store
from ...store.reader import training_split
from ...training.loop import Task, TrainingPlan, TrainingRun, adamw, train_or_load
from ...transforms import Pipeline
from ...transforms.presets import TrainingPipeline
from .generator import GENERATOR, Generator
from .model import ImageNetwork, Size, load_size
from .photos import Photos, read_photos

_MAX_VALIDATED = 512
_VALIDATION_BATCH = 64
_FEW_POSITIONS = 64


@dataclass(frozen=True)
class GeneratorSettings:
    """The options of `train_generator` that its result depends on, as its record has them.

    A field that is added needs the default that trains as before: `reserve_output` takes it for
    generators whose records lack the field.
    """

    preset: str | None
    sigma: float | str | None
    size: str
    set: Sequence[str]
    steps: int | None
    train_split: str
    seed: int
    precision: str


class PhotosToLearn(NamedTuple):
    """Photos to learn from, others to choose the checkpoint on, and what the user should know."""

    train: Photos
    val: Photos
    notes: list[str]


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

    unit = "images"
    error = GeneratorError
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
        self.train = train
        self.val = val
        self.pipeline = pipeline
        self._rest = pipeline.part(applied)
        self.config = config
        self.compute = compute
        self.batch_size = min(config.batch_size, len(train))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(config.seed, "initialise"))
            self.network = ImageNetwork(replace(size, dim=train.rows.embeddings.shape[1]))
        self.network.to(compute.device)
        self.module = self.network
        self.plan = TrainingPlan(
            steps=config.steps,
            learning_rate=config.learning_rate,
            validate_every=max(1, config.steps // config.validations),
            rise=max(1, min(config.warmup, config.steps // 10)),
            clip_norm=config.clip_norm,
            ema=config.ema,
        )
        self.optimizer = adamw(
            self.network.parameters(),
            weight_decay=config.weight_decay,
            betas=(0.9, 0.99),
            fused=True,
        )
        val_inputs = self._rest.transform(
            val.rows.embeddings, modality=val.rows.modality, training=False
        )
        self.val_inputs = torch.from_numpy(val_inputs)

        settings = [
            self.network.config,
            pipeline.config(),
            applied,
            pipeline.record()["tensors"],
            compute.precision,
        ]
        data: list[Any] = []
        for photos in (train, val):
            data += [photos.rows.keys, photos.rows.embeddings, photos.pixels]
        self.identity = digest_of(settings, *data)

    def generator(self, run: TrainingRun, record: Mapping[str, Any]) -> Generator:
        """Return the generator of a run; its record is ``record`` and facts of the training."""
        facts = {
            "preset": self.pipeline.name,
            "seed": self.config.seed,
            "photos": {"train": len(self.train), "val": len(self.val)},
            "training": {**asdict(self.config), "precision": self.compute.precision},
            "trace": [list(point) for point in run.trace],
            "validations": [[one.step, one.train_loss, one.val_loss] for one in run.history],
            "best_val_loss": None if run.kept is None else run.kept.val_loss,
            "seconds": round(sum(one.seconds + one.facts["seconds"] for one in run.history), 1),
        }
        return Generator(self.network, self.pipeline, {**record, **facts}, self.compute)

    def batch(self, number: int) -> tuple[int, Indices]:
        """Return the epoch of a step, and the rows of its batch.

        Each epoch has every photo once, but for a rest that is smaller than a batch.
        """
        epoch, place = divmod(number, len(self.train) // self.batch_size)
        order = self.order(len(self.train), self.config.seed, "order", epoch)
        return epoch, order[place * self.batch_size :][: self.batch_size]

    def step(self, number: int, update: Callable[[Tensor | float], float]) -> tuple[float, int]:
        """Learn from one batch of photos."""
        config = self.config
        rows = self.train.rows
        epoch, batch_rows = self.batch(number)
        n = len(batch_rows)
        rng = generator(config.seed, "step", number)
        is_flipped = torch.from_numpy(rng.random(n) < 0.5)
        normal_times = rng.standard_normal(n)
        is_withheld = torch.from_numpy(rng.random(n) < config.drop)
        torch.manual_seed(int(rng.integers(2**62)))
        images = _to_network(self.train.pixels[batch_rows])  # (B, 3, height, width)
        images = torch.where(is_flipped[:, None, None, None], images.flip(3), images)
        inputs = self._rest.transform(
            rows.embeddings[batch_rows],
            modality=rows.modality,
            training=True,
            keys=[rows.keys[row] for row in batch_rows],
            items=[rows.items[row] for row in batch_rows],
            seed=config.seed,
            epoch=epoch,
        )
        noise = torch.randn(images.shape)
        loss = self._loss(images, noise, normal_times, torch.from_numpy(inputs), is_withheld)
        return update(loss), n

    def validate(self) -> tuple[float, dict[str, Any]]:
        """Return the mean squared error of the velocity on the validation photos.

        Corrupt's noise and flips are left out. Times are spread evenly over their distribution;
        times and noise are the same in every validation.
        """
        started = time.perf_counter()
        n = len(self.val)
        rng = generator(self.config.seed, "validation")
        shares = (rng.permutation(n) + 0.5) / n
        normal_times = np.array([NormalDist().inv_cdf(share) for share in shares])
        noise = torch.from_numpy(
            rng.standard_normal((n, 3, *self.val.pixels.shape[1:3]), np.float32)
        )
        images = _to_network(self.val.pixels)
        is_withheld = torch.zeros(n, dtype=torch.bool)
        total = 0.0
        for start in range(0, n, _VALIDATION_BATCH):
            rows = slice(start, start + _VALIDATION_BATCH)
            loss = self._loss(
                images[rows],
                noise[rows],
                normal_times[rows],
                self.val_inputs[rows],
                is_withheld[rows],
            )
            total += float(loss) * len(images[rows])
        return total / n, {"seconds": time.perf_counter() - started}

    def _loss(
        self,
        images: Tensor,
        noise: Tensor,
        normal_times: Array,
        inputs: Tensor,
        is_withheld: Tensor,
    ) -> Tensor:
        """Return the mean squared error of the predicted velocity ``noise - image``.

        Args:
            images: (B, 3, height, width), -1 to 1.
            noise: of the same shape.
            normal_times: (B,), standard normal numbers. Their logistic function gives the times,
                which favours the middle of the way.
            inputs: embeddings (B, d).
            is_withheld: bool (B,), rows whose embedding is not shown to the network.
        """
        device = self.compute.device
        times = torch.tensor(
            [1 / (1 + math.exp(-normal_time)) for normal_time in normal_times], dtype=torch.float32
        ).to(device)
        images = images.to(device)
        noise = noise.to(device)
        t = times[:, None, None, None]
        noisy = (1 - t) * images + t * noise
        with self.compute.autocast(), self._attention():
            velocity = self.network(noisy, times, inputs.to(device), is_withheld.to(device))
        return F.mse_loss(velocity.float(), noise - images)

    def _attention(self) -> AbstractContextManager[None]:
        """Return the context in which attention is computed.

        On a CPU in bf16, the backward pass of torch's fused attention is slow where there are few
        positions: without it, a step of size ``tiny`` takes 14% less time. For 256 positions (size
        ``small``) it is the faster one.
        """
        config = self.network.config
        level = list(config.attention).index(True) if any(config.attention) else 0
        positions = (config.pixels // config.patch // 2**level) ** 2
        is_bf16_on_cpu = self.compute.device_type == "cpu" and self.compute.precision == "bf16"
        if is_bf16_on_cpu and positions <= _FEW_POSITIONS:
            return sdpa_kernel(SDPBackend.MATH)
        return nullcontext()


def _to_network(pixels: Pixels) -> Tensor:
    """Return pixels (n, height, width, 3) as float32 (n, 3, height, width) from -1 to 1.

    Contiguous: the layout of the pixels (channels last) would stay that of all layers, whose group
    norms take three times as long in it on a CPU.
    """
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().contiguous().div_(127.5).sub_(1)


@checked
def train_generator(
    store: Store | str | Path = "c3-store",
    pipeline: Pipeline | None = None,
    *,
    output: str | Path = "c3-generator",
    preset: str | None = None,
    sigma: float | str | None = None,
    size: GeneratorSize = "tiny",
    set: Sequence[str] = (),
    steps: PositiveInt | None = None,
    train_split: str = "train",
    download: bool = False,
    seed: int = 0,
    device: str | None = None,
    precision: Precision = "auto",
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> Generator:
    """Train an image generator on the photos of a store and their image embeddings, and write it to
    ``output``.

    Training reads no text: the generator learns to produce each photo from its own embedding, and
    later gets the embedding of a text instead. Each embedding is collapsed with the mean of its own
    modality (C3, Zhang et al., ICLR 2024, trained image to image). The state of the run is saved in
    a folder beside ``output``. The same call continues an interrupted run, and returns the
    generator of a finished run.

    Args:
        store: See `embed`.
        pipeline: See `train_captioner`.
        output: The folder to write the generator to.
        preset: The preset, or a JSON or YAML file of steps; `c3 export --list` shows the presets.
            By default c3.
        sigma: Standard deviation of the noise, per dimension. auto (the default) estimates it from
            the distances between photos and their nearest neighbours, pairs from at least 10 photos
            with their captions.
        size: Size of the images: tiny (32 pixels, for a CPU), small (64 pixels) or base (128
            pixels, for a GPU).
        set: Override a setting of ``size``, for example learning_rate=5e-4 or batch_size=32.
        steps: Number of training steps. The default depends on ``size``.
        train_split: The split to train on, or all.
        download: Download photos given by URL.
        seed: Seed for all random numbers.
        device: See `connect_heads`.
        precision: See `connect_heads`.
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
    set = as_list(set)
    store = Store.open(store, reporter=reporter)
    training_pipeline = TrainingPipeline.choose(store, pipeline, preset, sigma, reporter=reporter)
    size_settings = load_size(size, set)
    if steps is None:
        steps = size_settings.training.steps
    training = replace(size_settings.training, seed=seed, steps=steps)
    size_settings = replace(size_settings, training=training)
    compute = devices.pick(device, precision)
    settings = GeneratorSettings(
        preset=training_pipeline.preset,
        sigma=training_pipeline.sigma,
        size=size,
        set=set,
        steps=steps,
        train_split=train_split,
        seed=seed,
        precision=compute.precision,
    )
    with reserve_output(
        Path(output), GENERATOR, settings, overwrite=overwrite, reporter=reporter
    ) as target:
        train, val, notes = training_photos(
            store, size_settings.pixels, train_split, download=download, reporter=reporter
        )
        pipeline, notes_on_pipeline = training_pipeline.fit(store, train_split, "image")
        notes += notes_on_pipeline
        usual_steps = load_size(size).training.steps
        if steps < usual_steps / 10:
            notes.append(
                f"{counted(steps, 'step is', 'steps are')} too few for recognisable images; the "
                f"default of the size {size} is {usual_steps:,}."
            )
        for note in notes:
            reporter.message(note)
        task = GeneratorTask(
            train, val, pipeline, size_settings, compute, applied=training_pipeline.applied
        )
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
) -> PhotosToLearn:
    """Read the photos to learn from, and others to validate on.

    Those to validate on are of the ``val`` split, or are held out of the training split where
    `training_split` says so: a tenth of its items, by a stable hash of their keys.

    Raises:
        StoreError: if the store has no images.
        GeneratorError: if the split has no photos, or too few to hold some out, or none can be
            read.
    """
    train_rows, val_rows, notes = training_split(store, "image", split, error=GeneratorError)
    if not len(train_rows) or not len(val_rows):
        raise GeneratorError(
            f"Training needs photos for training and for validation, but there are "
            f"{len(train_rows)} and {len(val_rows)}.",
            remedy="Embed more photos.",
        )
    in_hash_order = val_rows.hash_order("validated")
    val_rows = val_rows.select(np.sort(in_hash_order[:_MAX_VALIDATED]))
    train = read_photos(store, train_rows, pixels, download=download, reporter=reporter)
    val = read_photos(store, val_rows, pixels, download=download, reporter=reporter)
    notes += [photos.unread for photos in (train, val) if photos.unread]
    return PhotosToLearn(train, val, notes)
