"""`c3 ablate-images`: the table of generated images.

`train_generator` trains generators on photos alone. Each then generates an image from one text of
each scored photo. All images are scored with the same real photos, which are encoded once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ... import devices
from ...choices import GeneratorSize, PositiveInt, Precision, checked
from ...errors import MetricError
from ...io.artifact import digest_of
from ...io.images import data_url
from ...lists import as_list
from ...reporter import SILENT, Reporter
from ...seeds import generator
from ...store import Pairs, Rows, Store
from ...store.leaks import notes_on_leaks
from ...transforms import Pipeline, preset
from ..imaging.evaluate_images import ImageScorer
from ..imaging.generator import Generator
from ..imaging.model import SAMPLING_STEPS, load_size
from ..imaging.train_generator import train_generator
from .cells import (
    Bench,
    Cell,
    MethodRun,
    chosen_methods,
    chosen_sigmas,
    command_of,
    content_digest,
    run_table,
    table_folder,
)
from .methods import IMAGE_METHODS, Method
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
    sigma: Sequence[float | str] | float | str = ("auto",),
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

    Each generator produces an image from one caption of each test photo, and the images are scored.
    Training a tiny generator takes about 17 minutes on a core with AVX-512 bf16, and an hour or
    more on other cores. Finished results and trained generators are kept. Run the same command
    again to continue, or add methods, seeds or sigmas.

    Args:
        store: See `embed`.
        methods: Methods to compare, comma-separated (C1, C2_1, C2_2, C3, LAFITE, oracle), or all.
            The JSON or YAML file of a pipeline is also a method; it uses the sigma in the file.
        seeds: Number of training runs per method, with the seeds 0, 1, 2, ...
        sigma: Standard deviation of the noise, per dimension: a number, auto, or pairs, as in c3
            train-generator.
        output: The folder for the results and their tables, table.md and table.html.
        split: The split whose photos are compared with generated images, or all.
        size: Size of the generator: tiny, small or base.
        set: See `train_generator`.
        steps: Number of training steps. The default depends on ``size``.
        encoder: Also score with the features of this model.
        jobs: Number of training runs at the same time. Each gets a share of the CPU cores, or its
            own GPU.
        device: See `connect_heads`.
        precision: See `connect_heads`.
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
    chosen = chosen_methods(methods, IMAGE_METHODS)
    methods = list(chosen)
    sigmas = chosen_sigmas(sigma)
    # The options as they are now: `store` is another object below
    command = command_of("ablate-images", ablate_images, locals())
    compute = devices.pick(device, precision)
    size_settings = load_size(size, set)
    with table_folder(output) as folder:
        store = Store.open(store, reporter=reporter)
        scored = ScoredPhotos.read(
            store, chosen, split, size_settings.pixels, encoder, device=device, reporter=reporter
        )

        def fit(name: str, sigma: float | None) -> Pipeline:
            return preset(name, sigma=sigma, train_on="image", infer_on="text").fit(store)

        # Train and score a cell for each method, seed and sigma
        bench = Bench(
            folder=folder,
            models="generators",
            methods=chosen,
            store=store,
            verb=train_generator,
            options={"size": size, "set": set, "steps": steps, "precision": compute.precision},
            device=compute.device,
            fit=fit,
            learned=digest_of(asdict(size_settings), content_digest(store)),
            scored=digest_of(
                [scoring.identity for scoring in scored.scorer.encoders],
                scored.texts.keys,
                scored.scorer.reference.pixels,
            ),
            score=scored.score,
        )
        runs = run_table(
            bench, methods, sigmas, noised="image", seeds=seeds, jobs=jobs, reporter=reporter
        )
        table = scored.table(runs, command)
        table.save(folder)
    return table


@dataclass(frozen=True)
class ScoredPhotos:
    """The scored photos, one text of each, which images are made from, and what scores the images.

    Attributes:
        methods: of the table, by name.
        photos: rows of the photos.
        texts: one row of texts for each photo.
        scorer: of the images.
        notes: what the user should know about the photos.
    """

    methods: Mapping[str, Method]
    photos: Rows
    texts: Rows
    scorer: ImageScorer
    notes: list[str]

    @classmethod
    def read(
        cls,
        store: Store,
        methods: Mapping[str, Method],
        split: str,
        pixels: int,
        encoders: Sequence[str],
        *,
        device: str | None = None,
        reporter: Reporter = SILENT,
    ) -> ScoredPhotos:
        """Read the photos of a split, and one text of each: the same for every method and seed.

        Args:
            store: of the photos.
            methods: of the table, by name.
            split: see `ablate_images`.
            pixels: height and width of the images.
            encoders: names of further encoders to score with.
            device: of the encoders.
            reporter: shows progress.

        Raises:
            GeneratorError: if no photo can be read.
            MetricError: if fewer than four photos of the split have texts and can be read.
            StoreError: if the store is an export.
        """
        store.info.require_raw(store.path)
        pairs = Pairs.match(store.load("image", split), store.load("text", split))
        scorer = ImageScorer.of(
            store,
            pixels,
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
                f"At least four photos with texts are needed; in the split {split!r}, "
                f"{len(text_rows)} can be read. The splits of images are "
                f"{store.list_splits('image')}.",
                remedy="Choose another split with --split, or run this command in the folder that "
                "c3 embed was run in.",
            )

        # Draw one text of each, whatever other photos there are
        drawn_rows = []
        for photo, rows in text_rows.items():
            rng = generator(0, "caption", pairs.first.keys[photo])
            drawn_rows.append(rows[int(rng.integers(len(rows)))])
        unread = [scorer.reference.unread] if scorer.reference.unread else []
        return cls(
            methods=methods,
            photos=pairs.first.select(np.array([*text_rows])),
            texts=pairs.second.select(np.array(drawn_rows)),
            scorer=scorer,
            notes=[*unread, *scorer.notes(), *notes_on_leaks(store, ["image"], split)],
        )

    def score(self, cell: Cell, models: Sequence[Generator], reporter: Reporter) -> MethodRun:
        """Make an image for each scored photo, and score the images."""
        model = models[-1]
        keys = self.photos.keys
        modality = self.methods[cell.method].asked_with
        asked_with = self.texts if modality == "text" else self.photos
        images = model.generate(
            embeddings=asked_with.embeddings,
            modality=modality,
            keys=keys,
            seed=cell.seed,
            sampling_steps=SAMPLING_STEPS,
            reporter=reporter,
        )
        scores, values = self.scorer.score(images, self.texts.captions, keys)
        examples = zip(keys[:_EXAMPLES], images, strict=False)
        return MethodRun(
            method=cell.method,
            seed=cell.seed,
            sigma=cell.sigma,
            scores=scores,
            outputs={key: data_url(image) for key, image in examples},
            images=len(images),
            values={name: array.round(_KEPT_DIGITS).tolist() for name, array in values.items()},
            recipe_sigma=0.0 if cell.sigma else model.record["sigma"],
            best_val_loss=model.record["best_val_loss"],
            parameters=model.to_dict()["parameters"],
            training_seconds=model.record["seconds"],
        )

    def table(self, runs: Sequence[MethodRun], command: str) -> Ablation:
        """Return the table of runs, with what real photos score."""
        keys = self.photos.keys
        captions = self.texts.captions
        reference = self.scorer.reference
        real, count = self.scorer.real(len(keys), captions, keys)
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
            facts=self.notes,
            command=command,
            methods=self.methods,
        )
