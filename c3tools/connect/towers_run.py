"""`c3 connect lit` and `full`: an open_clip model trained on photos with their captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..corpus import Corpus, ImageItem, read_corpus, split_of
from ..devices import Compute
from ..encoders import DEFAULT_MODEL, Network, load_network, open_image
from ..encoders.loading import weights_sha256
from ..errors import ConnectError
from ..store.rows import held_out
from . import processes
from .card import towers_card
from .geometry import measure
from .gradients import TwoTowers
from .pairs import FeatureInputs, Inputs, Pairs, ids_of, ids_of_rows
from .run import CARD_FILE, Display, RunContext, distributed, scores_of, silent, train_towers, write_text
from .settings import TrainingSettings
from .towers import ImageTower, PhotoInputs, TextTower, TokenInputs, choose_trained, image_trunk, save_open_clip

LIT, FULL = "lit", "full"
NAMES = ("image", "text")
_ENCODED = 64


@dataclass(frozen=True)
class TowerSettings:
    """What `connect_towers` depends on beside the photos and the training.

    Attributes:
        mode: ``lit`` trains the text tower towards the frozen image tower (Zhai et al., 2022), ``full`` both.
        model: to start from, see `c3tools.encoders.load_network`.
        random_init: start from random weights of this seed instead of the model's.
        image_head: in ``lit``, train the projection head of the image tower too.
        augment: show a random part of each photo, mirrored half the time; not in ``lit``, whose photos are encoded
            once.
        half: store the weights as float16.
        train_split: the split to learn from.
    """

    mode: str = LIT
    model: str = DEFAULT_MODEL
    random_init: int | None = None
    image_head: bool = False
    augment: bool = True
    half: bool = False
    train_split: str = "train"

    def __post_init__(self) -> None:
        if self.mode not in (LIT, FULL):
            raise ConnectError(f"There is no mode {self.mode!r}.", remedy=f"Choose {LIT} or {FULL}.")
        if self.image_head and self.mode == FULL:
            raise ConnectError("The whole image tower is trained in the mode full, its head with it.")


@dataclass
class CaptionedPhotos:
    """Photos that can be decoded, and their captions.

    Attributes:
        photos: in the order of the corpus.
        captions: of these photos.
        owner: int64 (captions,), the photo of each.
        roles: the split of each caption.
    """

    photos: list[ImageItem]
    captions: list[str]
    owner: np.ndarray[Any, np.dtype[np.int64]]
    roles: list[str]

    def rows_of(self, role: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Captions of one split."""
        return np.flatnonzero(np.array([own == role for own in self.roles], dtype=bool))


def connect_towers(
    paths: Sequence[Path],
    output: Path,
    towers: TowerSettings | None = None,
    settings: TrainingSettings | None = None,
    *,
    captions: Path | None = None,
    compute: Compute | None = None,
    progress: Display = silent,
    say: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Train the text tower, or both towers, of an open_clip model and write it as a ``local-dir:`` model.

    The folder ``output`` has the model, the log of the geometry as a table and as a figure, and a card. A run that
    was interrupted is continued by the same call. Several processes (`torchrun`) share each batch.

    Args:
        paths: photos and captions, as `c3 embed` takes them.
        output: the folder.
        towers: see `TowerSettings`.
        settings: of the training.
        captions: a captions file, instead of those found by themselves.
        compute: device and precision; the best there is when None.
        progress: opens the displays.
        say: told what the user should know, one line at a time.

    Returns:
        The record: settings, data, scores.

    Raises:
        CorpusError: if there are no photos or captions.
        EncoderError: if the model cannot be loaded.
        ConnectError: if there are too few pairs, or the run collapsed.
    """
    towers, settings = towers or TowerSettings(), settings or TrainingSettings()
    network = load_network(towers.model, random_init=towers.random_init)
    with distributed(compute, progress, say) as session:
        data, unreadable = readable(read_corpus(paths, captions=captions), network, session)
        train_rows, val_rows = _training_rows(data, towers.train_split, session)
        choose_trained(network, image_tower=towers.mode == FULL, image_head=towers.image_head)
        two, photos = _two_towers(network, data, towers, settings.seed, session)
        texts = TokenInputs(network, data.captions)
        first_ids = ids_of_rows(photos.values) if isinstance(photos, FeatureInputs) else np.arange(len(data.photos))
        ids = first_ids, ids_of([caption.strip().lower() for caption in data.captions])
        train, val = (Pairs(photos, texts, data.owner[rows], rows, *ids) for rows in (train_rows, val_rows))
        identity = (asdict(towers), weights_sha256(network.model))
        trained, loss = train_towers(two, train, val, settings, output, NAMES, session, *identity)
        record: dict[str, Any] = {
            "mode": towers.mode,
            "image_head": towers.image_head,
            "start": network.identity,
            "photos": len(data.photos),
            "unreadable": unreadable,
            "augment": towers.augment and towers.mode == FULL,
            **trained,
        }
        record["scores"] = {
            role: _scores(two, photos, texts, data, role, session.compute)
            for role in ("val", "test")
            if len(set(data.owner[data.rows_of(role)])) > 1
        }
        if session.is_main_process:
            save_open_clip(network, loss, output, half=towers.half)
            write_text(output / CARD_FILE, towers_card(output.name, record))
    return record


def readable(corpus: Corpus, network: Network, session: RunContext) -> tuple[CaptionedPhotos, int]:
    """The photos that have captions and can be decoded, with their captions, and how many cannot.

    Every photo is decoded once, so that no training ends at a broken one after hours.
    """
    captioned = {text.image_key for text in corpus.texts}
    photos = [image for image in corpus.images if image.key in captioned]
    good = np.zeros(len(photos), dtype=bool)

    def decodes(photo: ImageItem) -> bool:
        try:
            open_image(photo.path, network.preprocess.size)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return False
        return True

    with session.progress("Decoding", len(photos)) as tracker, ThreadPoolExecutor() as pool:
        for row, found in enumerate(pool.map(decodes, photos)):
            good[row] = found
            tracker.advance(1)
    bad = len(photos) - int(good.sum())
    if bad:
        first = photos[int(np.flatnonzero(~good)[0])].path
        session.say(f"{bad:,} of {len(photos):,} photos cannot be decoded and are left out, the first is {first}.")
    kept = [photo for photo, found in zip(photos, good, strict=True) if found]
    position = {photo.key: row for row, photo in enumerate(kept)}
    texts = [text for text in corpus.texts if text.image_key in position]
    owner = np.array([position[str(text.image_key)] for text in texts], dtype=np.int64)
    roles = [split_of(text.split, str(text.image_key)) for text in texts]
    return CaptionedPhotos(kept, [text.caption for text in texts], owner, roles), bad


def _training_rows(data: CaptionedPhotos, split: str, session: RunContext) -> tuple[Any, Any]:
    train, val = data.rows_of(split), data.rows_of("val")
    if not len(train):
        there = ", ".join(f"{role}: {len(data.rows_of(role)):,}" for role in sorted(set(data.roles)))
        raise ConnectError(
            f"There are no captioned photos in the split {split!r}; captions by split: {there or 'none'}.",
            remedy="Name the split with --train-split, or the captions file with --captions.",
        )
    if not len(val) or split == "val":
        held = held_out([data.photos[owner].key for owner in data.owner[train]])
        train, val = train[~held], train[held]
        session.say(f"There is no val split: {len(val):,} captions of the split {split!r} are held out.")
    return train, val


def _two_towers(
    network: Network, data: CaptionedPhotos, towers: TowerSettings, seed: int, session: RunContext
) -> tuple[TwoTowers, Inputs]:
    photos = PhotoInputs(
        [photo.path for photo in data.photos],
        [photo.key for photo in data.photos],
        network.preprocess,
        seed if towers.augment else None,
    )
    text, image = TextTower(network), ImageTower(network, trunk=towers.image_head)
    if towers.mode == FULL:
        return TwoTowers(image, text), photos
    frozen = TwoTowers(image, text).to(session.compute.device).eval()
    features = FeatureInputs(_encoded(frozen, photos, session))
    return TwoTowers(image_trunk(network)[1] if towers.image_head else nn.Identity(), text), features


@torch.inference_mode()
def _encoded(towers: TwoTowers, photos: Inputs, session: RunContext) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Features (n, d) of all photos by the frozen tower, not normalised; several processes share them."""
    step = _ENCODED * processes.world()
    parts = []
    with session.progress("Photos through the frozen tower", len(photos)) as tracker:
        for start in range(0, len(photos), step):
            mine = np.arange(_ENCODED) + start + _ENCODED * processes.rank()
            # every process gathers as many rows; those beyond the end are cut off below
            rows = towers.project(photos.rows(np.minimum(mine, len(photos) - 1)), 0, session.compute)
            parts.append(processes.gathered(rows).cpu().numpy())
            tracker.advance(min(step, len(photos) - start))
    embedded: np.ndarray[Any, np.dtype[np.float32]] = np.concatenate(parts)[: len(photos)]
    return embedded


def _scores(
    towers: TwoTowers, photos: Inputs, texts: Inputs, data: CaptionedPhotos, role: str, compute: Compute
) -> dict[str, Any]:
    rows = data.rows_of(role)
    items = np.unique(data.owner[rows])
    embedded = [
        towers.embed_rows(inputs, side, numbers, compute)
        for side, (inputs, numbers) in enumerate(((photos, items), (texts, rows)))
    ]
    return scores_of(measure(embedded[0], embedded[1], np.searchsorted(items, data.owner[rows])), NAMES)
