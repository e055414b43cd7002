"""An open_clip model trained on photos with captions: `c3 connect lit` and `c3 connect full`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..choices import NonNegativeInt, PositiveInt, Precision, TowerMode, checked
from ..corpus.items import Corpus
from ..corpus.reading import read_corpus
from ..corpus.splits import describe_val_alone, is_val_alone, splits_of
from ..devices import pick
from ..encoders import DEFAULT_MODEL, Network, load_network
from ..encoders.networks import weights_sha256
from ..encoders.towers import ImageTower, TextTower, can_trim, end_positions
from ..errors import ConnectError
from ..executors import cores
from ..io.artifact import ArtifactType, reading, reserve_output
from ..io.files import write_json_atomically
from ..photos.decoding import IMAGE_SECONDS, decoded_batches
from ..reporter import SILENT, Reporter
from ..result_table import Table
from ..store import Failure
from .contrastive import (
    LOG_FILE,
    RECORD_FILE,
    ContrastiveLoss,
    PairTask,
    TrainingSettings,
    TwoTowers,
    scores_table,
)
from .training_pairs import ArrayInputs, Inputs, PairInputs, PhotoInputs

_EPOCHS = {"lit": 20, "full": 10}  # by mode
_LEARNING_RATES = {"lit": 5e-4, "full": 1e-4}
_CONFIG_FILE = "open_clip_config.json"
_NAMES = ("image", "text")
_KIND = ArtifactType("model", RECORD_FILE, ConnectError, "c3 connect", "", (_CONFIG_FILE, LOG_FILE))
_ENCODED = 64


@dataclass(frozen=True, kw_only=True)
class TowersSettings(TrainingSettings):
    """The options of `connect_towers` that its result depends on, as its record has them.

    A field that is added needs the default that trains as before: `reserve_output` takes it for
    models whose records lack the field.
    """

    mode: str
    augment: bool
    model: str
    random_init: int | None
    precision: str


@dataclass(frozen=True)
class ConnectedTowers:
    """A trained open_clip model, written as a folder.

    Attributes:
        folder: of the model.
        record: settings, data, scores: plain JSON values.
    """

    folder: Path
    record: dict[str, Any]

    @property
    def name(self) -> str:
        """The name by which every command and `c3tools.load_encoder` load the model."""
        return f"local-dir:{self.folder}"

    def table(self) -> Table:
        """Return its scores, as `c3 connect` prints them."""
        return scores_table(self.record)


@checked
def connect_towers(
    paths: str | Path | Sequence[str | Path],
    *,
    output: str | Path = "c3-model",
    mode: TowerMode = "lit",
    captions: str | Path | None = None,
    model: str | None = None,
    random_init: int | None = None,
    augment: bool = True,
    logit_scale: str = "learned",
    close_gap: float = 0.0,
    batch_size: PositiveInt = 256,
    chunk: PositiveInt | None = 64,
    epochs: PositiveInt | None = None,
    learning_rate: float | None = None,
    patience: NonNegativeInt = 5,
    train_split: str = "train",
    seed: int = 0,
    device: str | None = None,
    precision: Precision = "auto",
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> ConnectedTowers:
    """Train the text tower, or both towers, of an open_clip model on photos and write it as a
    ``local-dir:`` model.

    The folder ``output`` contains the model, the log of the geometry as a table and as a figure,
    and the record. The same call continues an interrupted run, and returns the model of a finished
    run.

    Args:
        paths: Photos with captions, as for c3 embed.
        output: The folder to write the trained model to.
        mode: ``lit`` trains the text tower with a frozen image tower (Zhai et al., CVPR 2022),
            ``full`` trains both.
        captions: A file of captions to use instead of the detected ones.
        model: The model: c3-mini (bundled, the default), an open_clip model ARCH/PRETRAINED,
            local-dir:PATH or hf-hub:ORG/NAME. `c3 models` lists more.
        random_init: See `embed`.
        augment: Train on random crops of the photos, half of them mirrored.
        logit_scale: See `connect_heads`.
        close_gap: See `connect_heads`.
        batch_size: Number of pairs per step.
        chunk: Number of pairs to embed at a time (gradient caching).
        epochs: Maximum number of passes over the pairs. By default 20 for lit, 10 for full.
        learning_rate: Peak learning rate of AdamW. By default 0.0005 for lit, 0.0001 for full.
        patience: See `connect_heads`.
        train_split: The split to train on, or all.
        seed: Seed for all random numbers.
        device: See `connect_heads`.
        precision: See `connect_heads`.
        overwrite: See `connect_heads`.
        reporter: Shows messages and progress.

    Raises:
        CorpusError: if there are no photos or captions.
        EncoderError: if the model cannot be loaded.
        ConnectError: if an option is not valid, or there are too few pairs.
        OutputError: if ``output`` contains another model or other files, another run is writing to
            it, or it is ``model``.
    """
    training = TrainingSettings(
        logit_scale=logit_scale,
        close_gap=close_gap,
        batch_size=batch_size,
        chunk=chunk,
        epochs=_EPOCHS[mode] if epochs is None else epochs,
        learning_rate=_LEARNING_RATES[mode] if learning_rate is None else learning_rate,
        patience=patience,
        train_split=train_split,
        seed=seed,
    )
    compute = pick(device, precision)
    is_frozen = mode == "lit"  # the image tower
    augment = augment and not is_frozen
    name = model or DEFAULT_MODEL
    settings = TowersSettings(
        **asdict(training),
        mode=mode,
        augment=augment,
        model=name,
        random_init=random_init,
        precision=compute.precision,
    )
    start = name.removeprefix("local-dir:") if name.startswith("local-dir:") else None
    with reserve_output(
        Path(output), _KIND, settings, overwrite=overwrite, start=start, reporter=reporter
    ) as target:
        if model is None:
            reporter.message(
                f"Starting from the bundled model {DEFAULT_MODEL}; choose another with --model."
            )
        network = load_network(name, random_init=random_init)
        made_from = [mode, augment, weights_sha256(network.model)]
        corpus = read_corpus([paths] if isinstance(paths, str | Path) else paths, captions=captions)
        pairs, unreadable = _photo_pairs(corpus, network, seed if augment else None, reporter)
        train, val = pairs.train_and_val(train_split, _NAMES, reporter)
        photo_count = len(pairs.item_rows)

        # The towers; a frozen one encodes the photos once, and gives way to the identity
        network.model.requires_grad_(True).visual.requires_grad_(not is_frozen)
        text = _TextFeatures(network.model, trims=can_trim(network.model, network.tokenizer))
        towers = TwoTowers(ImageTower(network.model, network.preprocess), text, compute)
        if is_frozen:
            features = _encode_photos(towers, pairs.inputs[0], photo_count, reporter)
            pairs = replace(pairs, inputs=(features, pairs.inputs[1]))
            train = replace(train, inputs=(features, train.inputs[1]))
            val = replace(val, inputs=(features, val.inputs[1]))
            towers = TwoTowers(nn.Identity(), text, compute)
        task = PairTask(towers, train, val, training, _NAMES, made_from)
        record = {
            "mode": mode,
            "augment": augment,
            "start": network.identity,
            "photos": photo_count,
            "unreadable": unreadable,
        }
        return task.connect(
            target,
            pairs,
            record,
            save=lambda folder: _save_open_clip(network, task.loss, folder),
            load=_load,
        )


@torch.inference_mode()
def _encode_photos(
    towers: TwoTowers, photos: Inputs, count: int, reporter: Reporter
) -> ArrayInputs:
    """Return the features of the first ``count`` photos, by the image tower as it is."""
    features = []
    towers.eval()
    with reporter.progress("Encoding photos with the frozen tower", count) as progress:
        for start in range(0, count, _ENCODED):
            block = np.arange(start, min(start + _ENCODED, count))
            features.append(towers.project(photos.read(block), 0).cpu().numpy())
            progress.advance(len(block))
    return ArrayInputs(np.concatenate(features))


def _load(folder: Path) -> ConnectedTowers:
    with reading(folder, _KIND) as (path, content):
        return ConnectedTowers(path, content["record"])


class _TextFeatures(TextTower):
    """The text tower, whose tokens are cut to the longest text if that is exact."""

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens.long()
        if self.trims:
            tokens = tokens[:, : int(end_positions(self.model, tokens).max()) + 1]
        return super().forward(tokens)


@torch.no_grad()
def _save_open_clip(network: Network, loss: ContrastiveLoss, folder: Path) -> None:
    """Write a trained model that open_clip, and every command, loads as ``local-dir:FOLDER``.

    Its logit scale is that of the loss.
    """
    model = network.model
    nn.init.constant_(model.get_parameter("logit_scale"), float(loss.log_scale))
    # one of transformers; CLIP's own comes with open_clip
    if hasattr(network.tokenizer, "save_pretrained"):
        network.tokenizer.save_pretrained(folder)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    settings = ("mean", "std", "interpolation", "resize_mode")
    preprocess = {
        key: network.preprocess.config[key] for key in settings if key in network.preprocess.config
    }
    config = network.model_config()
    # No pretrained weights are to be fetched, as all weights are in the file
    for part, switch in (
        ("vision_cfg", "timm_model_pretrained"),
        ("text_cfg", "hf_model_pretrained"),
    ):
        if switch in config.get(part, {}):
            config[part] = {**config[part], switch: False}
    write_json_atomically(
        folder / _CONFIG_FILE, {"model_cfg": config, "preprocess_cfg": preprocess}
    )


def _photo_pairs(
    corpus: Corpus, network: Network, seed: int | None, reporter: Reporter
) -> tuple[PairInputs, int]:
    """Pair photos with their captions; with a seed, photos are augmented. Return how many cannot be
    decoded, too.

    Every photo is decoded once within a limit of time, so that no training ends at a broken one
    after hours.
    """
    captioned = {text.image_key for text in corpus.texts}
    photos = [image for image in corpus.images if image.key in captioned]
    failures: list[Failure] = []
    with reporter.progress("Decoding", len(photos)) as progress:
        for batch, _ in decoded_batches(
            [(0, photos)],
            network.preprocess,
            batch_size=_ENCODED,
            workers=cores(),
            time_limit=IMAGE_SECONDS,
        ):
            failures += batch.failures
            progress.advance(len(batch.rows) + len(batch.failures))
    if failures:
        reporter.message(
            f"{len(failures):,} of {len(photos):,} photos cannot be decoded and are left out, for "
            f"example {failures[0].path} ({failures[0].message})."
        )
    broken = {failure.key for failure in failures}
    photos = [photo for photo in photos if photo.key not in broken]

    # A pair for each caption of a photo that is left
    photo_rows = {photo.key: row for row, photo in enumerate(photos)}
    texts = [text for text in corpus.texts if text.image_key in photo_rows]
    items = [str(text.image_key) for text in texts]
    captions = [text.caption for text in texts]
    tokens = ArrayInputs(np.asarray(network.tokenizer(captions or [""]), dtype=np.int32))
    inputs = (PhotoInputs(photos, network.preprocess, seed), tokens)
    rows = np.array([[photo_rows[item] for item in items], range(len(texts))], dtype=np.int64)

    # Their splits; a corpus that names nothing but val is divided like one that names none
    names = [text.split for text in texts]
    if is_val_alone(names):
        reporter.message(describe_val_alone())
        names = [None] * len(names)
    splits = splits_of(items, names)
    return PairInputs.of(inputs, rows, captions, items, splits), len(failures)
