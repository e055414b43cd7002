"""The table for images: its data, and the training, generation and scoring of one cell.

Generators learn from photos alone. Each then makes an image from a text of every scored photo.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from .. import devices
from ..devices import Compute
from ..encoders import data_url
from ..errors import MetricError
from ..imaging.evaluate import ImageScorer
from ..imaging.generator import Generator
from ..imaging.model import SAMPLING_STEPS, Size, load_size
from ..imaging.photos import Photos
from ..imaging.train import GeneratorTask, training_photos
from ..io.artifact import digest_of
from ..reporter import Reporter
from ..seeds import generator
from ..store import Pairs, Rows, Store
from ..training.loop import CheckpointDir, train
from ..transforms import preset
from ..transforms.fitting import moments_of
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
        asked: by modality, the rows that images are made from: one text of each scored photo, and
            the photos.
        compute: device and precision.
        scorer: of the images; None where nothing is scored.
        notes: what the user should know about the photos.
        size: of the generator, with the settings of its training.
    """

    store: Store
    photos: tuple[Photos, Photos]
    asked: Mapping[str, Rows]
    compute: Compute
    size: Size
    scorer: ImageScorer | None
    notes: list[str]

    methods: ClassVar[Mapping[str, Method]] = IMAGE_METHODS
    kept_in: ClassVar[str] = "generators"

    @classmethod
    def of(
        cls,
        store: Store,
        *,
        split: str,
        size: str | None,
        set: Sequence[str],
        steps: int | None,
        encoder: Sequence[str],
        device: str | None,
        precision: str,
        reporter: Reporter,
        **_: Any,
    ) -> ImageTask:
        """Read the photos of a table, and one text of each scored photo: the same for every method
        and seed.

        The arguments are those of `c3tools.ablate`.

        Raises:
            GeneratorError: if photos are missing.
            MetricError: if fewer than two photos of the split have texts and can be read.
        """
        own, compute = load_size(size or "tiny", set), devices.pick(device, precision)
        own = replace(own, training=replace(own.training, steps=steps or own.training.steps))
        train, val, notes = training_photos(store, own.pixels, reporter=reporter)
        pairs = Pairs.match(store.load("image", split), store.load("text", split))
        n, model = len(pairs.first), store.info.model
        scorer = ImageScorer.of(
            store,
            own.pixels,
            split,
            n,
            encoder,
            conditioning=model,
            device=device,
            reporter=reporter,
        )
        readable, texts_of = frozenset(scorer.reference.rows.keys), dict[int, list[int]]()
        for row in pairs.rows.tolist():
            photo = int(pairs.item_index[row])
            if pairs.first.keys[photo] in readable:
                texts_of.setdefault(photo, []).append(row)
        if len(texts_of) < 4:  # of three, one half would be a single photo
            raise MetricError(
                f"At least four photos with texts are needed; of those in the split {split!r}, "
                f"{len(texts_of)} can be "
                f"read. The splits of images are {store.list_splits('image')}.",
                remedy="Choose another split with --split, or run this command in the folder that "
                "c3 embed was run in.",
            )
        drawn = [
            rows[int(generator(0, "caption", pairs.first.keys[photo]).integers(len(rows)))]
            for photo, rows in texts_of.items()
        ]
        asked = {
            "image": pairs.first.select(np.array([*texts_of])),
            "text": pairs.second.select(np.array(drawn)),
        }
        notes = [*notes, *filter(None, [scorer.reference.unread]), *scorer.notes()]
        return cls(store, (train, val), asked, compute, own, scorer, notes)

    def learner(self) -> ImageTask:
        """Return the task without what only scoring needs."""
        return replace(self, asked={}, scorer=None)

    @cached_property
    def learned(self) -> str:
        """A digest of everything that a generator depends on, except its method, sigma and seed."""
        return digest_of(
            [asdict(self.size), self.compute.precision],
            *(part for photos in self.photos for part in (photos.rows.embeddings, photos.pixels)),
            *(moments_of(self.store, modality).mean for modality in ("image", "text")),
        )

    @cached_property
    def scored(self) -> str:
        """A digest of everything else that images and their scores depend on."""
        assert self.scorer is not None
        encoders, reference = self.scorer.encoders, self.scorer.reference
        rows = (each.embeddings for each in (*self.asked.values(), reference.rows))
        return digest_of(
            self.asked["text"].captions,
            [each.identity for each in encoders],
            *rows,
            reference.pixels,
        )

    def load(self, folder: Path) -> Generator:
        """Load a generator that was kept."""
        return Generator.load(folder, self.compute)

    def fit_model(
        self, training: Training, start: None, checkpoints: CheckpointDir, reporter: Reporter
    ) -> Generator:
        """Train a generator."""
        pipeline = preset(
            training.preset, sigma=training.sigma, train_on="image", infer_on="text"
        ).fit(self.store)
        size = replace(self.size, training=replace(self.size.training, seed=training.seed))
        record = {"model": dict(self.store.info.model), "sigma": training.sigma}
        task = GeneratorTask(*self.photos, pipeline, size, self.compute)
        run = train(task, checkpoints=checkpoints, label=training.label, reporter=reporter)
        return task.generator(run, record)

    def run(self, cell: Cell, model: Any, reporter: Reporter) -> Run:
        """Make an image for each scored photo, and score the images."""
        assert self.scorer is not None
        modality = IMAGE_METHODS[cell.method].asked_with
        keys, asked = self.asked["image"].keys, self.asked[modality].embeddings
        given = {"embeddings": asked, "modality": modality, "keys": keys, "seed": cell.seed}
        images = model.generate(**given, sampling_steps=SAMPLING_STEPS, reporter=reporter)
        scores, values = self.scorer.score(images, self.asked["text"].captions, keys)
        return Run(
            *cell,
            scores,
            {key: data_url(image) for key, image in zip(keys[:_EXAMPLES], images, strict=False)},
            len(images),
            {metric: each.round(_KEPT_DIGITS).tolist() for metric, each in values.items()},
            best_val_loss=model.record["best_val_loss"],
            parameters=model.to_dict()["parameters"],
            training_seconds=model.record["seconds"],
        )

    def table(self, runs: Sequence[Run], **shown: Any) -> Ablation:
        """Return the table of runs, with what real photos score."""
        assert self.scorer is not None
        keys, captions, reference = (
            self.asked["image"].keys,
            self.asked["text"].captions,
            self.scorer.reference,
        )
        real, count = self.scorer.real(len(keys), captions, keys)
        pixels = dict(zip(reference.rows.keys, map(Image.fromarray, reference.pixels), strict=True))
        photos = zip(keys[:_EXAMPLES], captions, strict=False)
        examples = {key: (caption, data_url(pixels[key])) for key, caption in photos}
        title = f"{len(keys):,} images of each and {count:,} real photos"
        return Ablation(
            runs,
            task="images",
            title=title,
            real=real,
            examples=examples,
            facts=self.notes,
            **shown,
        )
