"""The methods of the table: the data each learns from, the transform of its images, and its published score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import DecoderError


@dataclass(frozen=True)
class Published:
    """A published score: of another encoder, another decoder and other data.

    Attributes:
        value: CIDEr on MS-COCO, in percent.
        source: where it was published, and how its checkpoint was chosen where that is known.
        spread: over seeds, where it was published.
    """

    value: float
    source: str
    spread: float | None = None


@dataclass(frozen=True)
class Method:
    """A method of the table.

    Attributes:
        training: preset of the pipeline that training inputs go through; None if nothing is trained.
        inference: preset of the pipeline that images go through.
        learns_from: ``text`` (each caption from its own embedding), ``pairs`` (from its image's embedding),
            ``pseudo-pairs`` (each training image with the captions nearest to it), ``captions`` (a language model,
            which reads no embedding), or ``images`` (a mapper before that language model, rewarded by the encoder).
        noisy: whether sigma matters.
        summary: one line.
        chosen_on: what the checkpoint is chosen on: texts, pairs, pseudo pairs or images; a dash for no training.
        steer: how the encoder steers the decoder, if it does (see `c3tools.captioning.GenerationConfig`).
        reads_captions: the decoder is given a caption of the image in place of the image.
        images: how many of the images are captioned, where a caption is costly; None for all.
        published: its published score.
    """

    training: str | None
    inference: str
    learns_from: str
    noisy: bool
    summary: str
    chosen_on: str = "texts"
    steer: str | None = None
    reads_captions: bool = False
    images: int | None = None
    published: Published | None = None

    @property
    def needs_encoder(self) -> bool:
        """True where the encoder is asked while it trains or writes."""
        return self.steer is not None or self.learns_from == "images"


_C3_PAPER = "Zhang et al. (C3), ICLR 2024"
METHODS: Mapping[str, Method] = {
    "C1": Method("c1", "c1", "text", False, "Connect alone", published=Published(13.0, _C3_PAPER)),
    "C2_1": Method(
        "c2-collapse", "c2-collapse", "text", False, "Connect, Collapse", published=Published(25.2, _C3_PAPER)
    ),
    "C2_2": Method("c2-corrupt", "c2-corrupt", "text", True, "Connect, Corrupt", published=Published(87.6, _C3_PAPER)),
    "C3": Method("c3", "c3", "text", True, "Connect, Collapse, Corrupt", published=Published(93.3, _C3_PAPER, 0.3)),
    "C3-retrieval": Method(
        "c3-retrieval",
        "c3-retrieval",
        "text",
        True,
        "C3, mixed with its nearest training captions (after IFCap, 2024)",
    ),
    "ZeroCap": Method(
        "c1",
        "c1",
        "captions",
        False,
        "a language model whose context the encoder's gradient shifts (Tewel et al., 2022)",
        steer="zerocap",
        images=100,
        published=Published(34.5, _C3_PAPER),
    ),
    "MAGIC": Method(
        "c1",
        "c1",
        "captions",
        False,
        "a language model whose words the encoder scores again (Su et al., 2022)",
        steer="magic",
        published=Published(49.3, _C3_PAPER),
    ),
    "ESPER": Method(
        "c1",
        "c1",
        "images",
        False,
        "a mapper in front of a language model, rewarded by the encoder (Yu et al., 2023)",
        chosen_on="images",
        published=Published(78.2, f"{_C3_PAPER}: ESPER-Style, whose checkpoint was chosen by references"),
    ),
    "CapDec": Method(
        "c2-corrupt",
        "capdec",
        "text",
        True,
        "noise on training texts (Nukrai et al., 2022)",
        published=Published(91.8, _C3_PAPER),
    ),
    "LAFITE": Method("lafite", "lafite", "text", False, "noise of 0.75 of each vector (Zhou et al., 2022)"),
    "TOMCap": Method(
        "tomcap",
        "tomcap",
        "text",
        True,
        "texts moved to the moments of images, noise (2026)",
        published=Published(97.8, "TOMCap (2026), with its retrieval"),
    ),
    "DeCap": Method(
        "c1",
        "decap",
        "text",
        False,
        "images projected on a memory of texts (Li et al., 2023)",
        published=Published(50.6, _C3_PAPER),
    ),
    "CLIPRe": Method(
        None,
        "c1",
        "text",
        False,
        "the nearest training caption (Su et al., 2022)",
        chosen_on="–",
        published=Published(25.6, _C3_PAPER),
    ),
    "WS-ClipCap": Method(
        "c1",
        "c1",
        "pseudo-pairs",
        False,
        "training images with their nearest captions",
        chosen_on="pseudo pairs",
        published=Published(33.7, _C3_PAPER),
    ),
    "WS-ClipCap-Multi": Method(
        "c2-corrupt",
        "c2-corrupt",
        "pseudo-pairs",
        True,
        "like WS-ClipCap, with noise",
        chosen_on="pseudo pairs",
        published=Published(74.6, _C3_PAPER),
    ),
    "paired": Method(
        "c1",
        "c1",
        "pairs",
        False,
        "trained on real pairs, for comparison",
        chosen_on="pairs",
        published=Published(108.35, _C3_PAPER),
    ),
    "oracle": Method(
        "c3", "c3", "text", True, "C3, given a caption of the image in place of the image", reads_captions=True
    ),
}
ABLATION = ("C1", "C2_1", "C2_2", "C3")


def check_methods(methods: Sequence[str]) -> None:
    """Refuse unknown names.

    Raises:
        DecoderError: with the known ones.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise DecoderError(f"There is no method {', '.join(unknown)}.", remedy=f"Choose from {', '.join(METHODS)}.")
