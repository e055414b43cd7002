"""The methods of the tables: what each learns from, how its inputs are transformed, and its published score; cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Published(NamedTuple):
    """A published CIDEr on MS-COCO in percent, of another encoder and decoder; its source; its spread over seeds."""

    mean: float
    source: str
    std: float | None = None


@dataclass(frozen=True)
class Method:
    """A method of a table.

    Attributes:
        training: preset of the pipeline that training inputs go through; None if nothing is trained.
        noisy: whether sigma matters.
        summary: one line.
        inference: preset that the inputs go through afterwards; None for that of the training.
        learns_from: ``text`` (each caption from its own embedding), ``pairs`` (from its image's embedding),
            ``pseudo-pairs`` (each training image with the captions nearest to it), ``captions`` (a language model,
            which reads no embedding), ``images`` (a mapper before that language model, rewarded by the encoder), or
            ``image`` (each photo from its own embedding).
        asked_with: modality of the embeddings that captions or images are made from.
        chosen_on: what the checkpoint is chosen on; a dash for no training.
        steer: how the encoder steers the decoder, if it does (see `c3tools.captioning.GenerationConfig`).
        images: how many of the images are captioned, where a caption is costly; None for all.
        published: its published score.
    """

    training: str | None
    noisy: bool
    summary: str
    inference: str | None = None
    learns_from: str = "text"
    asked_with: str = "image"
    chosen_on: str = "texts"
    steer: str | None = None
    images: int | None = None
    published: Published | None = None

    @property
    def needs_encoder(self) -> bool:
        """True where the encoder is asked while it trains or writes."""
        return self.steer is not None or self.learns_from == "images"


def _of_paper(value: float, spread: float | None = None, note: str = "") -> Published:
    return Published(value, f"Zhang et al. (C3), ICLR 2024{note}", spread)


_STYLE = ": ESPER-Style, whose checkpoint was chosen by references"
METHODS: Mapping[str, Method] = {
    "C1": Method("c1", False, "Connect alone", published=_of_paper(13.0)),
    "C2_1": Method("c2-collapse", False, "Connect, Collapse", published=_of_paper(25.2)),
    "C2_2": Method("c2-corrupt", True, "Connect, Corrupt", published=_of_paper(87.6)),
    "C3": Method("c3", True, "Connect, Collapse, Corrupt", published=_of_paper(93.3, 0.3)),
    "C3-retrieval": Method("c3-retrieval", True, "C3, mixed with its nearest training captions (after IFCap, 2024)"),
    "ZeroCap": Method(
        "c1",
        False,
        "a language model whose context the encoder's gradient shifts (Tewel et al., 2022)",
        learns_from="captions",
        steer="zerocap",
        images=100,
        published=_of_paper(34.5),
    ),
    "MAGIC": Method(
        "c1",
        False,
        "a language model whose words the encoder scores again (Su et al., 2022)",
        learns_from="captions",
        steer="magic",
        published=_of_paper(49.3),
    ),
    "ESPER": Method(
        "c1",
        False,
        "a mapper in front of a language model, rewarded by the encoder (Yu et al., 2023)",
        learns_from="images",
        chosen_on="images",
        published=_of_paper(78.2, note=_STYLE),
    ),
    "CapDec": Method(
        "c2-corrupt", True, "noise on training texts (Nukrai et al., 2022)", "capdec", published=_of_paper(91.8)
    ),
    "LAFITE": Method("lafite", False, "noise of 0.75 of each vector (Zhou et al., 2022)"),
    "TOMCap": Method(
        "tomcap",
        True,
        "texts moved to the moments of images, noise (2026)",
        published=Published(97.8, "TOMCap (2026), with its retrieval"),
    ),
    "DeCap": Method(
        "c1", False, "images projected on a memory of texts (Li et al., 2023)", "decap", published=_of_paper(50.6)
    ),
    "CLIPRe": Method(
        None, False, "the nearest training caption (Su et al., 2022)", chosen_on="–", published=_of_paper(25.6)
    ),
    "WS-ClipCap": Method(
        "c1",
        False,
        "training images with their nearest captions",
        learns_from="pseudo-pairs",
        chosen_on="pseudo pairs",
        published=_of_paper(33.7),
    ),
    "WS-ClipCap-Multi": Method(
        "c2-corrupt",
        True,
        "like WS-ClipCap, with noise",
        learns_from="pseudo-pairs",
        chosen_on="pseudo pairs",
        published=_of_paper(74.6),
    ),
    "paired": Method(
        "c1",
        False,
        "trained on real pairs, for comparison",
        learns_from="pairs",
        chosen_on="pairs",
        published=_of_paper(108.35),
    ),
    "oracle": Method("c3", True, "C3, given a caption of the image in place of the image", asked_with="text"),
}


def _of_photos(training: str, noisy: bool, summary: str, asked_with: str = "text") -> Method:
    return Method(training, noisy, summary, learns_from="image", asked_with=asked_with, chosen_on="photos")


IMAGE_METHODS: Mapping[str, Method] = {
    "C1": _of_photos("c1", False, "Connect alone"),
    "C2_1": _of_photos("c2-collapse", False, "Connect, Collapse"),
    "C2_2": _of_photos("c2-corrupt", True, "Connect, Corrupt"),
    "C3": _of_photos("c3", True, "Connect, Collapse, Corrupt"),
    "LAFITE": _of_photos("lafite", False, "noise of 0.75 of each vector (Zhou et al., 2022)"),
    "oracle": _of_photos("c3", True, "the generator of C3, given the embeddings of the photos themselves", "image"),
}
ABLATION = ("C1", "C2_1", "C2_2", "C3")
# FID and IS on MS-COCO, as the paper prints them (Zhang et al., ICLR 2024): another generator and other data
PUBLISHED_IMAGES = (
    ("DALL-E", 27.5, 17.9),
    ("CogView", 27.1, 18.2),
    ("LAFITE_G", 20.9, 24.9),
    ("C1", 29.8, 22.4),
    ("C2_1", 21.7, 24.4),
    ("C2_2", 19.8, 25.5),
    ("C3", 19.6, 26.0),
)


class Cell(NamedTuple):
    """A cell of a table: a method, a seed, and the standard deviation of its noise per dimension."""

    method: str
    seed: int
    sigma: float

    @property
    def label(self) -> str:
        """The cell in words."""
        return f"{self.method}, seed {self.seed}"


class Training(NamedTuple):
    """A training that cells of a table need: what is learned, and from what.

    Attributes:
        label: for people.
        preset: of the pipeline that training inputs go through.
        learns_from: see `Method`.
        sigma: standard deviation of the noise per dimension.
        seed: for all random numbers.
        start: another training, whose result it starts from.
    """

    label: str
    preset: str
    learns_from: str
    sigma: float
    seed: int
    start: Training | None = None
