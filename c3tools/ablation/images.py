"""The table for images: generators trained on images alone, and images generated from texts, for methods × seeds.

Finished results and the trained generators are kept, so that the table can be continued and extended.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import devices
from ..devices import Compute
from ..encoders import Encoder
from ..errors import GeneratorError, MetricError, telling_what_is_kept
from ..imaging import Generator, ImageScorer, Photos, TrainingConfig, fit_generator, load_size
from ..imaging.evaluate import load_encoders, real_photos
from ..imaging.model import SAMPLING_STEPS
from ..imaging.sheet import inline_png
from ..imaging.train import training_photos
from ..io.files import MALFORMED, write_json_atomically
from ..io.lock import locked
from ..io.outputs import Output
from ..reporter import SILENT, Reporter
from ..seeds import generator as seeded
from ..store import Pairs, Rows, Store
from ..training.checkpoints import CheckpointDir
from ..transforms import preset
from ..transforms.sigma import PAIRS, parse_sigma, sigma_by_rule
from .image_table import FILES, IMAGE_METHODS, ImageAblation, ImageRun
from .trainings import Training, check_jobs, train_ahead

EXAMPLES = 12
_NAMED_DIGITS = 12
_KEPT_DIGITS = 6  # of the values per photo


@dataclass(frozen=True)
class ImageData:
    """The data of a table.

    Attributes:
        train, val: photos to learn from and to choose the checkpoint on, with their embeddings.
        asked: by modality, the rows that images are generated from: one text of each scored photo, and the photos.
        captions: the texts, in the same order.
        scorer: of the images.
        store: that pipelines are fitted on.
    """

    train: Photos
    val: Photos
    asked: Mapping[str, Rows]
    captions: Sequence[str]
    scorer: ImageScorer
    store: Store


def ablate_images(
    store: Store | str | Path = "c3-store",
    *,
    methods: str | Sequence[str] = ("C1", "C2_1", "C2_2", "C3"),
    seeds: int = 3,
    sigma: float | str = 0.1,
    output: str | Path = "c3-ablation",
    split: str = "test",
    size: str | None = None,
    set: Sequence[str] = (),
    steps: int | None = None,
    encoder: Sequence[str] = (),
    keep_generators: bool = True,
    jobs: int = 1,
    device: str | None = None,
    backend: str = "auto",
    precision: str = "auto",
    reporter: Reporter = SILENT,
) -> ImageAblation:
    """Train a generator with each method and seed, make an image from a text of each scored photo, and score these.

    Finished results (cells of the table) are kept in ``output`` by their settings and data, as in `c3tools.ablate`. The
    table (table.md and table.html) is that of the last call.

    Args:
        store: The store of embeddings: a folder or a URL (s3://, gs://).
        methods: Methods to compare, comma-separated, or all.
        seeds: Number of seeds per method: 0, 1, 2, ...
        sigma: Standard deviation of the noise, per dimension: a number, auto or pairs, as in ``c3 train-generator``.
        output: The folder for results, table.md and table.html.
        split: The split whose photos are compared with, or all.
        size: Size of the generator: tiny, small or base. By default tiny.
        set: Change settings of ``size``, such as learning_rate=5e-4 or batch_size=32.
        steps: Training steps of a generator. The default depends on ``size``.
        encoder: Also score with the features of these models.
        keep_generators: Keep the trained generators.
        jobs: Trainings that run at the same time. Each gets a share of the cores, or its own GPU.
        device: cpu, cuda, cuda:1 or mps. By default the fastest available.
        backend: auto, torch, openvino or onnx (the last two are for CPUs and need the extra of that name).
        precision: auto, fp32, bf16, fp16, or int8 (encoders on a CPU; needs the extra int8).
        reporter: Shows messages and progress.

    Raises:
        GeneratorError: if a method or a setting is unknown, or photos are missing.
        MetricError: if the split has no photos with texts, or fewer than two can be read.
        OutputError: if ``output`` contains other files, or another run is writing to it.
    """
    names = [name.strip() for name in methods.split(",")] if isinstance(methods, str) else list(methods)
    names = list(IMAGE_METHODS) if names == ["all"] else names
    check_image_methods(names)
    check_jobs(jobs, kept=keep_generators)
    size, noise, output = size or "tiny", parse_sigma(sigma), Path(output)
    if (noise, split) == (PAIRS, "val"):
        raise MetricError("--sigma pairs uses the val split, so the table cannot be scored on that split.")
    chosen = load_size(size, set)
    training = replace(chosen.training, steps=chosen.training.steps if steps is None else steps)
    store = Store.open(store, reporter=reporter)
    compute = devices.pick(device, precision)
    with (
        locked(output),
        telling_what_is_kept(lambda: f"Finished results are kept in {output}; run the same command again to continue."),
    ):
        Output(output, "ablation", FILES).holds_result()
        if isinstance(noise, str):
            noise, why = sigma_by_rule(noise, store, noised="image")
            reporter.message(why)
        encoders = load_encoders(store, encoder, device=device, backend=backend, reporter=reporter)
        data, remarks = image_data(store, chosen.pixels, split, encoders, reporter)
        keep = output / "generators" if keep_generators else None
        options = {"config": training, "size": size, "set": set, "compute": compute}
        runs = _runs(data, names, seeds, noise, output / "cells", keep, jobs, reporter, options)
        table = _table(data, runs, remarks, _command(store, names, seeds, noise, size, set, steps, split, encoder))
        table.save(output)
    return table


def _runs(
    data: ImageData,
    methods: Sequence[str],
    seeds: int,
    value: float,
    folder: Path,
    keep: Path | None,
    jobs: int,
    reporter: Reporter,
    options: dict[str, Any],
) -> list[ImageRun]:
    """Return the cells of the table; those that are not finished are computed and saved."""
    identity = _identity(data, **options)
    cells = folder / identity[:_NAMED_DIGITS]
    generators = Path() if keep is None else keep / identity[:_NAMED_DIGITS]
    wanted = {}
    for seed in range(seeds):
        for name in methods:
            method = IMAGE_METHODS[name]
            strength = value if method.noisy else 0.0
            path = cells / f"{name}-sigma{strength:g}-seed{seed}.json"
            wanted[path] = name, Training.of(f"{name}, seed {seed}", method.preset, "image", strength, seed, generators)
    known = {path: _read(path, identity) for path in wanted}
    pending = [training for path, (_, training) in wanted.items() if known[path] is None]
    compute = options.pop("compute")
    learned = data.train, data.val, data.store
    if keep is not None:
        train_ahead(
            partial(_trained, *learned, **options),
            pending,
            options["config"].steps,
            jobs=jobs,
            compute=compute,
            reporter=reporter,
        )
    runs: list[ImageRun] = []
    trained: dict[Path, Generator] = {}
    for path, (name, training) in wanted.items():
        run = known[path]
        if run is None:
            if training.folder not in trained:
                own = {**options, "keep": keep is not None}
                trained[training.folder] = _trained(*learned, training, compute, reporter, **own)
            run = _run(data, name, training, trained[training.folder], reporter)
            write_json_atomically(path, {"identity": identity, "run": asdict(run)})
        else:
            reporter.message(f"{training.label}: already finished")
        runs.append(run)
        first = next(metric for metric in run.scores if metric.startswith("FD-"))
        reporter.message(f"{training.label}: {first} {run.scores[first]:.3f}")
    return runs


def check_image_methods(methods: Sequence[str]) -> None:
    """Refuse unknown names.

    Raises:
        GeneratorError: with the known ones.
    """
    unknown = [name for name in methods if name not in IMAGE_METHODS]
    if unknown or not methods:
        raise GeneratorError(
            f"There is no method {', '.join(unknown) or 'none'} for images.",
            remedy=f"Choose from {', '.join(IMAGE_METHODS)}.",
        )


def image_data(
    store: Store, pixels: int, split: str, encoders: Sequence[Encoder], reporter: Reporter = SILENT
) -> tuple[ImageData, list[str]]:
    """Read the photos of a table, and one text of each scored photo: the same for every method and seed.

    Raises:
        GeneratorError: if photos are missing.
        MetricError: if the split has no photos with texts, or fewer than two can be read.
    """
    train, val, notes = training_photos(store, pixels, reporter=reporter)
    pairs = Pairs.match(store.load("image", split), store.load("text", split))
    if not len(pairs):
        raise MetricError(
            f"The store {store.path} has no photos with texts in the split {split!r}.",
            remedy=f"Choose another with --split. The splits of images are {store.list_splits('image')}.",
        )
    reference, others, more = real_photos(store, pixels, split, len(pairs.first), reporter=reporter)
    rows_of: dict[int, list[int]] = {}
    for row in pairs.rows.tolist():
        rows_of.setdefault(int(pairs.item_index[row]), []).append(row)
    readable = frozenset(reference.rows.keys)
    photos = [row for row in rows_of if pairs.first.keys[row] in readable]
    if len(photos) < 2:
        raise MetricError(
            f"At least two photos with texts are needed; of those in the split {split!r}, {len(photos)} can be read.",
            remedy="Choose another split with --split."
            if len(rows_of) < 2
            else "Run this command in the folder that c3 embed was run in, or embed the photos again.",
        )
    drawn = [
        rows_of[row][int(seeded(0, "caption", pairs.first.keys[row]).integers(len(rows_of[row])))] for row in photos
    ]
    images, texts = pairs.first.select(np.array(photos)), pairs.second.select(np.array(drawn))
    scorer = ImageScorer(
        reference, others, encoders, conditioning=store.info.model, training=train.rows, reporter=reporter
    )
    remarks = [*notes, *more, *scorer.notes()]
    return ImageData(train, val, {"text": texts, "image": images}, texts.captions, scorer, store), remarks


def _trained(
    train: Photos,
    val: Photos,
    store: Store,
    training: Training,
    compute: Compute,
    reporter: Reporter,
    *,
    config: TrainingConfig,
    keep: bool = True,
    **options: Any,
) -> Generator:
    """Return the generator in the folder of the training; if there is none, train it and, on request, save it there."""
    folder = training.folder if keep else None
    if folder is not None:
        with suppress(GeneratorError):  # missing, or cut short: trained (again)
            return Generator.load(folder, compute)
    pipeline = preset(training.preset, sigma=training.sigma, train_on="image", infer_on="text").fit(store)
    checkpoints = None if folder is None else CheckpointDir(folder.with_name(f"{folder.name}.training"))
    made = fit_generator(
        train,
        val,
        pipeline,
        record={"model": dict(store.info.model), "sigma": training.sigma},
        checkpoints=checkpoints,
        compute=compute,
        label=training.label,
        reporter=reporter,
        training=replace(config, seed=training.seed),
        **options,
    )
    if folder is not None and checkpoints is not None:
        made.save(folder)
        checkpoints.clear()
    return made


def _run(data: ImageData, name: str, training: Training, made: Generator, reporter: Reporter) -> ImageRun:
    modality = IMAGE_METHODS[name].asked_with
    asked = data.asked[modality]
    keys = data.asked["image"].keys
    options: dict[str, Any] = {"seed": training.seed, "sampling_steps": SAMPLING_STEPS, "reporter": reporter}
    images = made.generate(embeddings=asked.embeddings, modality=modality, keys=keys, **options)
    scores, values = data.scorer.score(images, data.captions, keys)
    examples = {key: inline_png(image) for key, image in zip(keys[:EXAMPLES], images, strict=False)}
    return ImageRun(
        name,
        training.seed,
        training.sigma,
        scores,
        made.record["best_val_loss"],
        made.record["seconds"],
        examples,
        {metric: each.round(_KEPT_DIGITS).tolist() for metric, each in values.items()},
    )


def _table(data: ImageData, runs: Sequence[ImageRun], remarks: list[str], command: str) -> ImageAblation:
    keys = list(data.asked["image"].keys)
    reference = data.scorer.reference
    rows = {key: row for row, key in enumerate(reference.rows.keys)}
    real, count = data.scorer.real(len(keys), data.captions, keys)
    photos = {key: inline_png(reference.pixels[rows[key]]) for key in keys[:EXAMPLES]}
    return ImageAblation(
        runs, len(keys), real, count, photos, dict(zip(keys, data.captions, strict=True)), remarks, command
    )


def _read(path: Path, identity: str) -> ImageRun | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return ImageRun(**content["run"]) if content["identity"] == identity else None
    except (OSError, *MALFORMED):
        return None


def _identity(data: ImageData, *, config: TrainingConfig, size: str, set: Sequence[str], compute: Compute) -> str:
    """Return a digest of everything that a cell depends on, except method, seed and sigma."""
    encoders = [dict(encoder.identity) for encoder in data.scorer.encoders]
    plain = [asdict(config), asdict(load_size(size, set)), compute.precision, list(data.captions), encoders]
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for photos in (data.train, data.val, data.scorer.reference):
        digest.update(photos.rows.embeddings.tobytes() + photos.pixels.tobytes())
    for rows in data.asked.values():
        digest.update(rows.embeddings.tobytes())
    for modality in ("image", "text"):
        digest.update(data.store.fitting_moments(modality).mean.tobytes())
    return digest.hexdigest()


def _command(
    store: Store,
    methods: Sequence[str],
    seeds: int,
    sigma: float,
    size: str,
    set: Sequence[str],
    steps: int | None,
    split: str,
    encoder: Sequence[str],
) -> str:
    parts = ["c3", "ablate", "--task", "images", "--methods", ",".join(methods), "--seeds", str(seeds)]
    parts += ["--sigma", f"{sigma:.6g}", "--size", size, *(part for value in set for part in ("--set", value))]
    parts += ["--steps", str(steps)] if steps is not None else []
    parts += ["--split", split] if split != "test" else []
    parts += [part for name in encoder for part in ("--encoder", name)]
    return shlex.join([*parts, "--store", str(store.path)])
