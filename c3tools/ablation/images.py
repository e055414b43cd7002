"""The table for images: its data, and the training, generation and scoring of one cell.

Generators learn from photos alone. Each then makes an image from a text of every scored photo.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..devices import Compute
from ..encoders import Encoder
from ..errors import MetricError
from ..imaging import Generator, ImageScorer, Photos, TrainingConfig, fit_generator, load_size
from ..imaging.evaluate import real_photos
from ..imaging.model import SAMPLING_STEPS
from ..imaging.sheet import inline_png
from ..imaging.train import training_photos
from ..io.artifact import digest_of
from ..reporter import SILENT, Reporter
from ..seeds import generator
from ..store import Pairs, Rows, Store
from ..training.checkpoints import CheckpointDir
from ..transforms import preset
from .methods import IMAGE_METHODS, Cell, Method, Training
from .table import Ablation, Run

_EXAMPLES = 12
_KEPT_DIGITS = 6  # of the values per photo


@dataclass(frozen=True)
class ImageTask:
    """Cells of images.

    Attributes:
        store: that pipelines are fitted on.
        photos: to learn from, and to choose the checkpoint on, with their embeddings.
        compute: device and precision.
        size, set: of the generator, as `c3tools.train_generator` takes them.
        training_steps: None for the default of the size.
        asked: by modality, the rows that images are made from: one text of each scored photo, and the photos.
        scorer: of the images.
        notes: what the user should know about the photos.
    """

    store: Store
    photos: tuple[Photos, Photos]
    compute: Compute
    size: str = "tiny"
    set: Sequence[str] = ()
    training_steps: int | None = None
    asked: Mapping[str, Rows] = field(default_factory=dict)
    scorer: ImageScorer | None = None
    notes: Sequence[str] = ()

    methods: ClassVar[Mapping[str, Method]] = IMAGE_METHODS
    kept_in: ClassVar[str] = "generators"

    @classmethod
    def of(
        cls, store: Store, split: str, encoders: Sequence[Encoder], reporter: Reporter = SILENT, **training: Any
    ) -> ImageTask:
        """Read the photos of a table, and one text of each scored photo: the same for every method and seed.

        Raises:
            GeneratorError: if photos are missing.
            MetricError: if the split has no photos with texts, or fewer than two can be read.
        """
        pixels = load_size(training["size"], training["set"]).pixels
        train, val, notes = training_photos(store, pixels, reporter=reporter)
        pairs = Pairs.match(store.load("image", split), store.load("text", split))
        if not len(pairs):
            raise MetricError(
                f"The store {store.path} has no photos with texts in the split {split!r}.",
                remedy=f"Choose another with --split. The splits of images are {store.list_splits('image')}.",
            )
        reference, others = real_photos(store, pixels, split, len(pairs.first), reporter=reporter)
        texts_of: dict[int, list[int]] = {}
        for row in pairs.rows.tolist():
            texts_of.setdefault(int(pairs.item_index[row]), []).append(row)
        readable = frozenset(reference.rows.keys)
        photos = [row for row in texts_of if pairs.first.keys[row] in readable]
        if len(photos) < 2:
            raise MetricError(
                f"At least two photos with texts are needed; of those in the split {split!r}, {len(photos)} can be "
                "read.",
                remedy="Choose another split with --split."
                if len(texts_of) < 2
                else "Run this command in the folder that c3 embed was run in, or embed the photos again.",
            )
        drawn = [
            texts_of[row][int(generator(0, "caption", pairs.first.keys[row]).integers(len(texts_of[row])))]
            for row in photos
        ]
        asked = {"image": pairs.first.select(np.array(photos)), "text": pairs.second.select(np.array(drawn))}
        scorer = ImageScorer(reference, others, encoders, conditioning=store.info.model, reporter=reporter)
        shown = [*notes, *filter(None, [reference.unread]), *scorer.notes()]
        return cls(store, (train, val), asked=asked, scorer=scorer, notes=shown, **training)

    def learner(self) -> ImageTask:
        """Return the task without what only scoring needs."""
        return replace(self, asked={}, scorer=None)

    def sample(self, fraction: float) -> ImageTask:
        """Return the task itself: a table of images has no train fractions."""
        return self

    def overlaps(self) -> Sequence[str]:
        """Return no notes: generators read no captions."""
        return ()

    @property
    def _training(self) -> TrainingConfig:
        own = load_size(self.size, self.set).training
        return replace(own, steps=self.training_steps or own.steps)

    @cached_property
    def learned(self) -> str:
        """A digest of everything that a generator depends on, except its method, sigma and seed."""
        return digest_of(
            [asdict(self._training), asdict(load_size(self.size, self.set)), self.compute.precision],
            *(part for photos in self.photos for part in (photos.rows.embeddings, photos.pixels)),
            *(self.store.fitting_moments(modality).mean for modality in ("image", "text")),
        )

    @cached_property
    def scored(self) -> str:
        """A digest of everything else that a cell depends on."""
        assert self.scorer is not None
        encoders = [dict(encoder.identity) for encoder in self.scorer.encoders]
        rows = [self.asked["text"], self.asked["image"], self.scorer.reference.rows]
        return digest_of(
            [list(self.asked["text"].captions), encoders],
            *(each.embeddings for each in rows),
            self.scorer.reference.pixels,
        )

    def made_from(self, cell: Cell) -> list[object]:
        """Return everything that a cell depends on, beside its method, sigma and seed."""
        return [self.learned, self.scored]

    def training(self, cell: Cell) -> Training:
        """Return the training of a cell."""
        return Training(cell.label, str(IMAGE_METHODS[cell.method].training), "image", cell.sigma, cell.seed)

    def steps(self) -> int:
        """Return how many steps one training has."""
        return self._training.steps

    def load(self, folder: Path) -> Generator:
        """Load a generator that was kept."""
        return Generator.load(folder, self.compute)

    def train(
        self, training: Training, start: None, checkpoints: CheckpointDir | None, reporter: Reporter
    ) -> Generator:
        """Train a generator."""
        pipeline = preset(training.preset, sigma=training.sigma, train_on="image", infer_on="text").fit(self.store)
        return fit_generator(
            *self.photos,
            pipeline,
            size=self.size,
            set=self.set,
            training=replace(self._training, seed=training.seed),
            compute=self.compute,
            record={"model": dict(self.store.info.model), "sigma": training.sigma},
            checkpoints=checkpoints,
            label=training.label,
            reporter=reporter,
        )

    def run(self, cell: Cell, model: Any, reporter: Reporter) -> Run:
        """Make an image for each scored photo, and score the images."""
        assert self.scorer is not None
        started, modality = time.perf_counter(), IMAGE_METHODS[cell.method].asked_with
        keys = self.asked["image"].keys
        options: dict[str, Any] = {"seed": cell.seed, "sampling_steps": SAMPLING_STEPS, "reporter": reporter}
        embeddings = self.asked[modality].embeddings
        images = model.generate(embeddings=embeddings, modality=modality, keys=keys, **options)
        scores, values = self.scorer.score(images, self.asked["text"].captions, keys)
        return Run(
            *cell,
            scores,
            {key: inline_png(image) for key, image in zip(keys[:_EXAMPLES], images, strict=False)},
            len(images),
            {metric: each.round(_KEPT_DIGITS).tolist() for metric, each in values.items()},
            best_val_loss=model.record["best_val_loss"],
            parameters=model.to_dict()["parameters"],
            training_seconds=model.record["seconds"],
            seconds=time.perf_counter() - started,
        )

    def lacks(self, cell: Cell, run: Run) -> bool:
        """Return False: every finished cell is whole."""
        return False

    def table(self, runs: Sequence[Run], **shown: Any) -> Ablation:
        """Return the table of runs, with what real photos score."""
        assert self.scorer is not None
        keys, captions, reference = self.asked["image"].keys, self.asked["text"].captions, self.scorer.reference
        real, count = self.scorer.real(len(keys), captions, keys)
        pixels = dict(zip(reference.rows.keys, reference.pixels, strict=True))
        examples = {
            key: (caption, inline_png(pixels[key]))
            for key, caption in zip(keys[:_EXAMPLES], captions[:_EXAMPLES], strict=True)
        }
        title = f"{len(keys):,} images of each and {count:,} real photos"
        return Ablation(runs, task="images", title=title, real=real, examples=examples, facts=self.notes, **shown)
