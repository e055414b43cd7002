"""An open_clip model trained on photos with captions: `c3 connect lit` and `c3 connect full`."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from ..arrays import Matrix
from ..corpus import Corpus, ImageItem, ImageReader, read_corpus
from ..devices import Compute
from ..encoders import DEFAULT_MODEL, ModelName, Network, load_network, open_image
from ..encoders.loading import weights_sha256
from ..encoders.towers import ImageTower, TextTower, can_trim, end_positions
from ..errors import ConnectError
from ..io.artifact import Kind, reading
from ..io.files import write_atomically, write_json_atomically
from ..reporter import SILENT, Reporter
from ..store.rows import positions, splits_of
from .gradients import TwoTowers
from .losses import ContrastiveLoss, LogitScale
from .pairs import FeatureInputs, Inputs, PairInputs, PhotoInputs, TokenInputs, number_rows, number_texts, source_of
from .processes import gather_rows, rank, world
from .training import LOG_FILE, RECORD_FILE, Prepared, TrainingSettings, connect, score_table

LIT, FULL = "lit", "full"
EPOCHS = {LIT: 20, FULL: 10}
LEARNING_RATE = {LIT: 5e-4, FULL: 1e-4}
CONFIG_FILE, MODEL_FILE = "open_clip_config.json", "open_clip_model.safetensors"
_NAMES = ("image", "text")
_KIND = Kind(
    "model", RECORD_FILE, ConnectError, "c3 connect", "", ("mode", "outcome", "recall@1"), (CONFIG_FILE, LOG_FILE)
)
_ENCODED = 64


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

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the training as JSON values."""
        return self.record

    def _repr_html_(self) -> str:
        return score_table(self.record, self.name)._repr_html_()


def connect_towers(
    paths: str | Path | Sequence[str | Path],
    output: str | Path = "c3-model",
    *,
    mode: str = "lit",
    captions: str | Path | None = None,
    model: str | None = None,
    random_init: int | None = None,
    image_head: bool = False,
    augment: bool = True,
    half: bool = False,
    loss: str = "infonce",
    logit_scale: str = "learned",
    max_logit_scale: float = 100.0,
    close_gap: float = 0.0,
    batch_size: int = 256,
    chunk: int | None = 64,
    epochs: int | None = None,
    learning_rate: float | None = None,
    weight_decay: float = 0.05,
    warmup: float = 0.05,
    patience: int = 5,
    log_every: int | None = None,
    train_split: str = "train",
    seed: int = 0,
    device: str | None = None,
    precision: str = "auto",
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> ConnectedTowers:
    """Train the text tower, or both towers, of an open_clip model on photos and write it as a ``local-dir:`` model.

    The folder ``output`` contains the model, the log of the geometry as a table and as a figure, the record and a model
    card. The same call continues an interrupted run, and returns the model of a finished run. Several processes
    (`torchrun`) share each batch.

    Args:
        paths: Photos with captions, as for c3 embed.
        output: The folder to write the trained model to.
        mode: ``lit`` trains the text tower with a frozen image tower (Zhai et al., CVPR 2022), ``full`` trains both.
        captions: A file of captions, instead of those that are detected.
        model: The model: c3-mini (bundled, the default), ARCH/PRETRAINED as in open_clip, local-dir:PATH or
            hf-hub:ORG/NAME.
        random_init: Use random weights, drawn with this seed, instead of the trained ones.
        image_head: Also train the projection head of the image tower (for towers from timm).
        augment: Train on random crops of the photos, half of them mirrored.
        half: Store the weights as float16.
        loss: The contrastive loss: infonce or sigmoid.
        logit_scale: 1 / temperature: a number such as 100 (fixed), learned (starts at 14.3), learned:20 (starts at 20),
            or 14:100 (rises from 14 to 100 over the steps).
        max_logit_scale: Upper limit of a learned logit scale.
        close_gap: Weight of two extra loss terms that close the gap: one pulls pairs together, one pushes centroids
            apart.
        batch_size: Number of pairs per step, over all processes.
        chunk: Number of pairs embedded at a time (gradient caching).
        epochs: Largest number of passes over the pairs. By default 20 for lit, 10 for full.
        learning_rate: Peak learning rate of AdamW. By default 0.0005 for lit, 0.0001 for full.
        weight_decay: Weight decay of AdamW, for matrices only.
        warmup: Fraction of the steps in which the learning rate rises.
        patience: Stop after this many log entries without a better recall@1; 0: never.
        log_every: Steps between log entries. By default one epoch.
        train_split: The split to train on.
        seed: Seed for all random numbers.
        device: cpu, cuda, cuda:1 or mps. By default the fastest available.
        precision: auto, fp32, bf16, fp16, or int8 (encoders on a CPU; needs the extra int8).
        overwrite: Replace an existing result that has other settings. It is kept as OUTPUT.previous.
        reporter: Shows messages and progress.

    Raises:
        CorpusError: if there are no photos or captions.
        EncoderError: if the model cannot be loaded.
        ConnectError: if an option is not valid, there are too few pairs, or the training collapsed.
        OutputError: if ``output`` contains another model or other files, another run is writing to it, or it is
            ``model``.
    """
    if mode not in (LIT, FULL):
        raise ConnectError(f"There is no mode {mode!r}.", remedy=f"Use {LIT} or {FULL}.")
    if image_head and mode == FULL:
        raise ConnectError("The image head is for the mode lit: the mode full trains the whole image tower.")
    settings = TrainingSettings(
        loss,
        LogitScale.parse(logit_scale, max_logit_scale),
        close_gap,
        batch_size,
        chunk,
        EPOCHS[mode] if epochs is None else epochs,
        LEARNING_RATE[mode] if learning_rate is None else learning_rate,
        weight_decay,
        warmup,
        log_every,
        patience,
        train_split,
        seed,
    )
    output, augment, model_name = Path(output), augment and mode == FULL, model or DEFAULT_MODEL
    start = ModelName.parse(model_name).architecture
    asked = {"mode": mode, "model": model_name, "random_init": random_init, "image_head": image_head}
    trained: list[Network] = []

    def prepare(compute: Compute, reporter: Reporter) -> Prepared:
        if model is None:
            reporter.message(f"Starting from the bundled model {DEFAULT_MODEL}; choose another with --model.")
        network = load_network(model_name, random_init=random_init)
        trained.append(network)
        start_weights = weights_sha256(network.model)
        corpus = read_corpus([paths] if isinstance(paths, str | Path) else paths, captions=captions)
        photos, unreadable = decodable_photos(corpus, network, reporter)
        pairs = _photo_pairs(corpus, photos, network, seed if augment else None)
        train, val = pairs.train_and_val(train_split, _NAMES, reporter)
        choose_trained(network, image_tower=mode == FULL, image_head=image_head)
        text = TextFeatures(network)
        towers = TwoTowers(ImageFeatures(network, trunk=image_head), text)
        if mode == LIT:
            values = _encode_photos(towers.to(compute.device).eval(), pairs.first, len(photos), compute, reporter)
            ids = number_rows(values)
            pairs, train, val = (
                replace(part, first=FeatureInputs(values), first_ids=ids) for part in (pairs, train, val)
            )
            towers = TwoTowers(image_trunk(network)[1] if image_head else nn.Identity(), text)
        record = {"mode": mode, "image_head": image_head, "start": network.identity, "photos": len(photos)}
        record |= {"unreadable": unreadable, "augment": augment}
        facts = _facts(network.identity, mode, image_head, augment, len(photos), unreadable)
        return Prepared(towers, pairs, train, val, [mode, image_head, augment, start_weights], record, facts)

    def save(folder: Path, loss: ContrastiveLoss) -> Mapping[str, Any]:
        save_open_clip(trained[0], loss, folder, half=half)
        return {}

    def load() -> ConnectedTowers:
        with reading(output, _KIND) as (folder, content):
            return ConnectedTowers(folder, content["record"])

    record = connect(
        output,
        _KIND,
        settings,
        {**asked, "augment": augment, "half": half},
        _NAMES,
        prepare,
        save,
        load,
        usage=f"`c3 embed PATH --model local-dir:{output.name}`, or "
        f'`open_clip.create_model_and_transforms("local-dir:{output.name}")`.',
        overwrite=overwrite,
        start=Path(start.removeprefix("local-dir:")) if start.startswith("local-dir:") else None,
        device=device,
        precision=precision,
        reporter=reporter,
    )
    return load() if record is None else ConnectedTowers(output, record)


def _facts(
    start: Mapping[str, Any], mode: str, image_head: bool, augment: bool, photos: int, unreadable: int
) -> list[tuple[str, str]]:
    """Return what the card says about a model, beside its training."""
    weights = f"random weights, seed {start['random_init']}" if start["random_init"] is not None else "its weights"
    head = " and the image tower's projection head, its trunk frozen" if image_head else ""
    lit = f"the text tower{head or ', towards the frozen image tower'}"
    augmented = "; random crops of the photos, half of them mirrored" if augment else ""
    return [
        ("start", f"{start['name']}, {weights}"),
        ("trained", f"{lit if mode == LIT else 'both towers'}{augmented}"),
        ("photos", f"{photos:,}, and {unreadable:,} that could not be decoded"),
    ]


class ImageFeatures(nn.Module):
    """Features (n, d) of pixels: of the whole tower, or of its trunk alone, without the projection head."""

    def __init__(self, network: Network, *, trunk: bool = False) -> None:
        super().__init__()
        self.tower = ImageTower(network.model, network.preprocess)
        self.trunk = image_trunk(network)[0] if trunk else None

    def forward(self, pixels: Tensor) -> Tensor:
        """Scale and encode the pixels."""
        return self.tower.features(pixels) if self.trunk is None else self.trunk(self.tower.scale(pixels))


class TextFeatures(nn.Module):
    """Features (n, d) of token ids (n, context length); padding is cut off if that is exact."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.tower = TextTower(network.model, trims=can_trim(network.model, network.tokenizer))

    def forward(self, tokens: Tensor) -> Tensor:
        """Cut the ids to the longest text and encode them."""
        tokens = tokens.long()
        if self.tower.trims:
            tokens = tokens[:, : int(end_positions(self.tower.model, tokens).max()) + 1]
        return self.tower.features(tokens)


def image_trunk(network: Network) -> tuple[nn.Module, nn.Module]:
    """Return the trunk of the image tower, and the projection head that is applied to its output.

    Raises:
        ConnectError: if the tower is not divided so; those from timm are.
    """
    visual = network.model.visual
    trunk, head = getattr(visual, "trunk", None), getattr(visual, "head", None)
    if not (isinstance(trunk, nn.Module) and isinstance(head, nn.Module) and any(True for _ in head.parameters())):
        raise ConnectError(
            f"The image tower of {network.identity['name']} has no projection head to train.",
            remedy="Leave out --image-head, or use `c3 connect full`.",
        )
    return trunk, head


def choose_trained(network: Network, *, image_tower: bool, image_head: bool = False) -> None:
    """Enable gradients for the text tower and, on request, the image tower or its head, but not for the logit scale."""
    network.model.requires_grad_(True)
    network.model.visual.requires_grad_(image_tower)
    if image_head:
        image_trunk(network)[1].requires_grad_(True)
    for name in ("logit_scale", "logit_bias"):
        parameter = getattr(network.model, name, None)
        if parameter is not None:
            parameter.requires_grad_(False)


@torch.no_grad()
def save_open_clip(network: Network, loss: ContrastiveLoss, folder: Path, *, half: bool = False) -> None:
    """Write a model that open_clip, and every command, loads as ``local-dir:FOLDER``; its logit scale is the loss's.

    Args:
        network: trained.
        loss: has the logit scale and, for the sigmoid loss, the bias.
        folder: of the model.
        half: store the weights as float16.
    """
    import open_clip  # takes seconds

    model = network.model
    nn.init.constant_(model.get_parameter("logit_scale"), float(loss.log_scale))
    if getattr(model, "logit_bias", None) is not None and loss.bias is not None:
        nn.init.constant_(model.get_parameter("logit_bias"), float(loss.bias))
    tensors = {
        key: (value.half() if half and value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in model.state_dict().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(network.tokenizer, "save_pretrained"):  # one of transformers; CLIP's own comes with open_clip
        network.tokenizer.save_pretrained(folder)
    write_atomically(folder / MODEL_FILE, lambda path: save_file(tensors, path))
    settings = ("mean", "std", "interpolation", "resize_mode")
    preprocess = {key: network.preprocess.config[key] for key in settings if key in network.preprocess.config}
    config = dict(open_clip.get_model_config(ModelName.parse(network.identity["name"]).architecture))
    for part, switch in (("vision_cfg", "timm_model_pretrained"), ("text_cfg", "hf_model_pretrained")):
        if switch in config.get(part, {}):  # its weights are in the file
            config[part] = {**config[part], switch: False}
    write_json_atomically(folder / CONFIG_FILE, {"model_cfg": config, "preprocess_cfg": preprocess})


def decodable_photos(corpus: Corpus, network: Network, reporter: Reporter = SILENT) -> tuple[list[ImageItem], int]:
    """Return the photos that have captions and can be decoded, and the number of those that cannot.

    Every photo is decoded once, so that no training ends at a broken one after hours.
    """
    captioned = {text.image_key for text in corpus.texts}
    photos = [image for image in corpus.images if image.key in captioned]
    if not photos:
        return [], 0

    def read(photo: ImageItem) -> str | BinaryIO:
        with suppress(OSError, ValueError):
            return source_of(photo, reader)
        return io.BytesIO()

    def decodes(file: str | BinaryIO) -> bool:
        try:
            open_image(file, network.preprocess.size)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return False
        return True

    kept: list[ImageItem] = []
    bad: list[ImageItem] = []
    with reporter.progress("Decoding", len(photos)) as progress, ThreadPoolExecutor() as pool, ImageReader() as reader:
        for start in range(0, len(photos), _ENCODED):
            some = photos[start : start + _ENCODED]
            for photo, good in zip(some, pool.map(decodes, map(read, some)), strict=True):
                (kept if good else bad).append(photo)
                progress.advance()
    if bad:
        reporter.message(
            f"{len(bad):,} of {len(photos):,} photos cannot be decoded and are left out, for example {bad[0].path}."
        )
    return kept, len(bad)


def _photo_pairs(corpus: Corpus, photos: Sequence[ImageItem], network: Network, seed: int | None) -> PairInputs:
    """Pair the photos with their captions; with a seed, photos are augmented."""
    row_of = positions([photo.key for photo in photos])
    texts = [text for text in corpus.texts if text.image_key in row_of]
    items = [str(text.image_key) for text in texts]
    return PairInputs(
        first=PhotoInputs(photos, network.preprocess, seed),
        second=TokenInputs(network.tokenizer, [text.caption for text in texts]),
        first_ids=np.arange(len(photos)),
        second_ids=number_texts([text.caption for text in texts]),
        first_rows=np.array([row_of[item] for item in items], dtype=np.int64),
        second_rows=np.arange(len(texts)),
        items=items,
        splits=splits_of([text.key for text in texts], items, [text.split for text in texts]),
    )


@torch.inference_mode()
def _encode_photos(towers: TwoTowers, photos: Inputs, n: int, compute: Compute, reporter: Reporter) -> Matrix:
    """Return the features (n, d) of all photos by the frozen tower, not normalised; processes divide the work."""
    step = _ENCODED * world()
    parts = []
    with reporter.progress("Encoding photos with the frozen tower", n) as progress:
        for start in range(0, n, step):
            mine = np.arange(_ENCODED) + start + _ENCODED * rank()
            # every process gathers as many rows; those beyond the end are cut off below
            rows = towers.project(photos.rows(np.minimum(mine, n - 1)), 0, compute)
            parts.append(gather_rows(rows).cpu().numpy())
            progress.advance(min(step, n - start))
    return np.concatenate(parts)[:n]
