"""`c3 ablate-images`: the table of generated images; its data, and the training, generation and
scoring of one cell.

Generators learn from photos alone. Each then makes an image from a text of every scored photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from PIL import Image

from .. import devices
from ..choices import GeneratorSize, PositiveInt, Precision, checked
from ..devices import Compute
from ..encoders import data_url
from ..errors import MetricError
from ..imaging.evaluate_images import ImageScorer
from ..imaging.generator import Generator
from ..imaging.model import SAMPLING_STEPS, Size, load_size
from ..imaging.photos import Photos
from ..imaging.train_generator import GeneratorTask, training_photos
from ..io.artifact import digest_of
from ..lists import as_list
from ..reporter import SILENT, Reporter
from ..seeds import generator
from ..store import Pairs, Rows, Store
from ..store.leaks import notes_on_leaks
from ..training.loop import CheckpointDir
from ..training.loop import train as run_training
from ..transforms import preset
from ..transforms.fitting import moments_of
from .bench import TableBench, chosen_methods, chosen_sigmas, command_of, make_table
from .cells import Cell, Run, Training
from .methods import IMAGE_METHODS
from .table import Ablation

_EXAMPLES = 12
_KEPT_DIGITS = 6  # of the values per photo
_LEAST_PHOTOS = 4  # of three, one half would be a single photo


@checked
def ablate_images(
    store: Store | str | Path = "c3-store",
    *,
    methods: str | Sequence[str] = "C1,C2_1,C2_2,C3",
    seeds: PositiveInt = 3,
    sigma: Sequence[float | str] | float | str = (0.1,),
    output: str | Path = "c3-image-ablation",
    split: str = "test",
    size: GeneratorSize = "tiny",
    set: Sequence[str] = (),
    steps: PositiveInt | None = None,
    encoder: Sequence[str] = (),
    jobs: PositiveInt = 1,
    device: str | None = None,
    precision: Precision = "auto",
    reporter: Reporter = SILENT,
) -> Ablation:
    """Compare methods that train generators on photos alone, and print one table.

    Each generator makes an image from a caption of every test photo, and the images are scored.
    Training a tiny generator takes about 17 minutes on one core with AVX-512 bf16, and an hour or
    more on one without. Finished results and trained generators are kept. Run the same command
    again to continue, or add methods, seeds or sigmas.

    Args:
        store: See `embed`.
        methods: Methods to compare, comma-separated (C1, C2_1, C2_2, C3, LAFITE, oracle), or all.
        seeds: Number of seeds per method: 0, 1, 2, ...
        sigma: Standard deviation of the noise, per dimension: a number, auto (derived from the
            photos), or pairs (from the cosine of at least 10 images with their captions).
        output: The folder for results, table.md and table.html.
        split: The split whose photos are compared with generated images, or all.
        size: Size of the generator: tiny, small or base.
        set: See `train_generator`.
        steps: Training steps. The default depends on ``size``.
        encoder: Also score with the features of this model.
        jobs: Trainings that run at the same time. Each gets a share of the cores, or its own GPU.
        device: See `connect_heads`.
        precision: See `embed`.
        reporter: Shows messages and progress.

    Raises:
        C3Error: if a method or a setting is unknown.
        GeneratorError: if photos are missing.
        MetricError: if fewer than four photos of the split have texts and can be read.
        StoreError: if texts or images are missing.
        OutputError: if ``output`` contains other files, or another run is writing to it.
    """
    set = as_list(set)
    encoder = as_list(encoder)
    names = chosen_methods(methods, IMAGE_METHODS)
    command = command_of(
        "ablate-images",
        ablate_images,
        store,
        {
            "methods": ",".join(names),
            "seeds": seeds,
            "sigma": sigma,
            "split": split,
            "size": size,
            "set": set,
            "steps": steps,
            "encoder": encoder,
            "jobs": jobs,
            "device": device,
            "precision": precision,
        },
    )

    def read(opened: Store) -> ImageBench:
        sized = load_size(size, set)
        training = replace(sized.training, steps=steps or sized.training.steps)
        return ImageBench.read(
            opened,
            split=split,
            size=replace(sized, training=training),
            encoders=encoder,
            compute=devices.pick(device, precision),
            device=device,
            reporter=reporter,
        )

    return make_table(
        store,
        read,
        names,
        chosen_sigmas(sigma),
        noised="image",
        seeds=seeds,
        folder=Path(output),
        jobs=jobs,
        command=command,
        reporter=reporter,
    )


@dataclass(frozen=True)
class ScoredPhotos:
    """The scored photos, one text of each, which images are made from, and what scores the images.

    Attributes:
        photos: rows of the photos.
        texts: one row of texts for each photo.
        scorer: of the images.
        notes: what the user should know about the photos.
    """

    photos: Rows
    texts: Rows
    scorer: ImageScorer
    notes: list[str]


@dataclass
class ImageBench(TableBench):
    """The data and the settings that all cells of images share.

    Attributes:
        store: that pipelines are fitted on.
        train_photos: photos to learn from, with their embeddings.
        val_photos: photos to choose the checkpoint on.
        size: of the generator, with the settings of its training.
        compute: device and precision.
        scored: what images are made from and compared with; None where only training is done.
    """

    store: Store
    train_photos: Photos
    val_photos: Photos
    size: Size
    compute: Compute
    scored: ScoredPhotos | None

    methods: ClassVar = IMAGE_METHODS
    models_folder: ClassVar = "generators"

    @classmethod
    def read(
        cls,
        store: Store,
        *,
        split: str,
        size: Size,
        encoders: Sequence[str],
        compute: Compute,
        device: str | None,
        reporter: Reporter,
    ) -> Self:
        """Read the photos of a table, and one text of each scored photo: the same for every method
        and seed.

        The arguments are those of `ablate_images`.

        Raises:
            GeneratorError: if photos are missing.
            MetricError: if fewer than four photos of the split have texts and can be read.
        """
        train, val, notes = training_photos(store, size.pixels, reporter=reporter)
        pairs = Pairs.match(store.load("image", split), store.load("text", split))
        scorer = ImageScorer.of(
            store,
            size.pixels,
            split,
            len(pairs.first),
            encoders,
            conditioning=store.info.model,
            device=device,
            reporter=reporter,
        )
        # The rows of texts of each photo that can be read
        readable_keys = frozenset(scorer.reference.rows.keys)
        text_rows: dict[int, list[int]] = {}
        for row in pairs.rows.tolist():
            photo = int(pairs.item_index[row])
            if pairs.first.keys[photo] in readable_keys:
                text_rows.setdefault(photo, []).append(row)
        if len(text_rows) < _LEAST_PHOTOS:
            raise MetricError(
                f"At least four photos with texts are needed; of those in the split {split!r}, "
                f"{len(text_rows)} can be read. The splits of images are "
                f"{store.list_splits('image')}.",
                remedy="Choose another split with --split, or run this command in the folder that "
                "c3 embed was run in.",
            )
        drawn_rows = []
        for photo, rows in text_rows.items():
            rng = generator(0, "caption", pairs.first.keys[photo])
            drawn_rows.append(rows[int(rng.integers(len(rows)))])
        unread = [scorer.reference.unread] if scorer.reference.unread else []
        scored = ScoredPhotos(
            photos=pairs.first.select(np.array([*text_rows])),
            texts=pairs.second.select(np.array(drawn_rows)),
            scorer=scorer,
            notes=[*notes, *unread, *scorer.notes(), *notes_on_leaks(store, ["image"], split)],
        )
        return cls(store, train, val, size, compute, scored)

    def for_training(self) -> Self:
        """Return the bench without what only scoring needs."""
        return replace(self, scored=None)

    @property
    def _scored(self) -> ScoredPhotos:
        assert self.scored is not None
        return self.scored

    @cached_property
    def learning_digest(self) -> str:
        """A digest of all that a generator depends on, except its training."""
        return digest_of(
            [asdict(self.size), self.compute.precision],
            self.train_photos.rows.embeddings,
            self.train_photos.pixels,
            self.val_photos.rows.embeddings,
            self.val_photos.pixels,
            moments_of(self.store, "image").mean,
            moments_of(self.store, "text").mean,
        )

    @cached_property
    def scoring_digest(self) -> str:
        """A digest of all else that images and their scores depend on."""
        scorer = self._scored.scorer
        return digest_of(
            self._scored.texts.captions,
            [encoder.identity for encoder in scorer.encoders],
            self._scored.photos.embeddings,
            self._scored.texts.embeddings,
            scorer.reference.rows.embeddings,
            scorer.reference.pixels,
        )

    def load(self, folder: Path) -> Generator:
        """Load a generator that was kept."""
        return Generator.load(folder, self.compute)

    def train(
        self, training: Training, start: None, checkpoints: CheckpointDir, reporter: Reporter
    ) -> Generator:
        """Train a generator."""
        unfitted = preset(training.preset, sigma=training.sigma, train_on="image", infer_on="text")
        settings = replace(self.size.training, seed=training.seed)
        task = GeneratorTask(
            self.train_photos,
            self.val_photos,
            unfitted.fit(self.store),
            replace(self.size, training=settings),
            self.compute,
        )
        run = run_training(task, checkpoints=checkpoints, label=training.label, reporter=reporter)
        record = {"model": dict(self.store.info.model), "sigma": training.sigma}
        return task.generator(run, record)

    def score(self, cell: Cell, model: Generator | None, reporter: Reporter) -> Run:
        """Make an image for each scored photo, and score the images."""
        assert model is not None  # every method of images trains a generator
        keys = self._scored.photos.keys
        modality = IMAGE_METHODS[cell.method].asked_with
        asked = self._scored.texts if modality == "text" else self._scored.photos
        images = model.generate(
            embeddings=asked.embeddings,
            modality=modality,
            keys=keys,
            seed=cell.seed,
            sampling_steps=SAMPLING_STEPS,
            reporter=reporter,
        )
        scores, values = self._scored.scorer.score(images, self._scored.texts.captions, keys)
        examples = zip(keys[:_EXAMPLES], images, strict=False)
        return Run(
            method=cell.method,
            seed=cell.seed,
            sigma=cell.sigma,
            scores=scores,
            outputs={key: data_url(image) for key, image in examples},
            images=len(images),
            values={name: array.round(_KEPT_DIGITS).tolist() for name, array in values.items()},
            best_val_loss=model.record["best_val_loss"],
            parameters=model.to_dict()["parameters"],
            training_seconds=model.record["seconds"],
        )

    def table(self, runs: Sequence[Run], command: str = "") -> Ablation:
        """Return the table of runs, with what real photos score."""
        keys = self._scored.photos.keys
        captions = self._scored.texts.captions
        reference = self._scored.scorer.reference
        real, count = self._scored.scorer.real(len(keys), captions, keys)
        pixels = dict(zip(reference.rows.keys, reference.pixels, strict=True))
        examples = {}
        for key, caption in zip(keys[:_EXAMPLES], captions, strict=False):
            examples[key] = (caption, data_url(Image.fromarray(pixels[key])))
        return Ablation(
            runs,
            task="images",
            title=f"{len(keys):,} images of each and {count:,} real photos",
            real=real,
            examples=examples,
            facts=self._scored.notes,
            command=command,
        )
