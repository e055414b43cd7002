"""The methods of the tables: what each learns from, how its inputs are transformed, and its
published score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from ..result_table import Table
from ..transforms import preset


@dataclass(frozen=True)
class Method:
    """A method of a table.

    Attributes:
        training: preset of the pipeline that training inputs go through; None if nothing is
            trained.
        summary: one line.
        published: its published CIDEr on MS-COCO in percent, of another encoder and decoder; a dash
            for none.
        inference: preset that the inputs go through afterwards; None for that of the training.
        learns_from: ``texts`` (each caption from its own embedding), ``pairs`` (from its image's
            embedding), ``pseudo pairs`` (each training image with the captions nearest to it),
            ``captions`` (a language model, which reads no embedding), ``images`` (a mapper before
            that language model, rewarded by the encoder), or ``photos`` (each from its own
            embedding).
        asked_with: modality of the embeddings that captions or images are made from.
        steer: how the encoder steers the decoder, if it does (see
            `c3tools.captioning.GenerationConfig`).
        images: how many of the images are captioned, where a caption is costly; None for all.
    """

    training: str | None
    summary: str
    published: str = "–"
    inference: str | None = None
    learns_from: str = "texts"
    asked_with: str = "image"
    steer: str | None = None
    images: int | None = None

    @property
    def noisy(self) -> bool:
        """True where sigma matters."""
        return self.training is not None and preset(self.training).sigma is not None

    @property
    def needs_encoder(self) -> bool:
        """True where the encoder is asked while it trains or writes."""
        return self.steer is not None or self.learns_from == "images"

    @property
    def chosen_on(self) -> str:
        """The data that the checkpoint is chosen on; a dash for no training."""
        return "–" if self.training is None else self.learns_from.replace("captions", "texts")


METHODS: Mapping[str, Method] = {
    "C1": Method("c1", "Connect alone", "13.0"),
    "C2_1": Method("c2-collapse", "Connect, Collapse", "25.2"),
    "C2_2": Method("c2-corrupt", "Connect, Corrupt", "87.6"),
    "C3": Method("c3", "Connect, Collapse, Corrupt", "93.3 ± 0.3"),
    "C3-retrieval": Method(
        "c3-retrieval", "C3, mixed with its nearest training captions (after IFCap, 2024)"
    ),
    "ZeroCap": Method(
        "c1",
        "a language model whose context the encoder's gradient shifts (Tewel et al., 2022)",
        "34.5",
        learns_from="captions",
        steer="zerocap",
        images=100,
    ),
    "MAGIC": Method(
        "c1",
        "a language model whose words the encoder scores again (Su et al., 2022)",
        "49.3",
        learns_from="captions",
        steer="magic",
    ),
    "ESPER": Method(
        "c1",
        "a mapper in front of a language model, rewarded by the encoder (Yu et al., 2023)",
        "78.2",
        learns_from="images",
    ),
    "CapDec": Method(
        "c2-corrupt", "noise on training texts (Nukrai et al., 2022)", "91.8", "capdec"
    ),
    "LAFITE": Method("lafite", "noise of 0.75 of each vector (Zhou et al., 2022)"),
    "TOMCap": Method("tomcap", "texts moved to the moments of images, noise (2026)", "97.8"),
    "DeCap": Method(
        "c1", "images projected on a memory of texts (Li et al., 2023)", "50.6", "decap"
    ),
    "CLIPRe": Method(None, "the nearest training caption (Su et al., 2022)", "25.6"),
    "WS-ClipCap": Method(
        "c1", "training images with their nearest captions", "33.7", learns_from="pseudo pairs"
    ),
    "WS-ClipCap-Multi": Method(
        "c2-corrupt", "like WS-ClipCap, with noise", "74.6", learns_from="pseudo pairs"
    ),
    "paired": Method("c1", "trained on real pairs, for comparison", "108.3", learns_from="pairs"),
    "oracle": Method(
        "c3", "C3, given one caption of an image; scored by the others", asked_with="text"
    ),
}
PUBLISHED = (
    "Published: CIDEr on MS-COCO, with other encoders and decoders: Zhang et al. (C3), ICLR 2024 "
    "(for ESPER: "
    "ESPER-Style, whose checkpoint was chosen by references); TOMCap (2026), with its retrieval."
)


_of_photos = partial(Method, learns_from="photos", asked_with="text")
IMAGE_METHODS: Mapping[str, Method] = {
    "C1": _of_photos("c1", "Connect alone"),
    "C2_1": _of_photos("c2-collapse", "Connect, Collapse"),
    "C2_2": _of_photos("c2-corrupt", "Connect, Corrupt"),
    "C3": _of_photos("c3", "Connect, Collapse, Corrupt"),
    "LAFITE": _of_photos("lafite", "noise of 0.75 of each vector (Zhou et al., 2022)"),
    "oracle": _of_photos(
        "c3",
        "the generator of C3, given the embeddings of the photos themselves",
        asked_with="image",
    ),
}
ABLATION = ("C1", "C2_1", "C2_2", "C3")
# FID and IS on MS-COCO, as the paper prints them (Zhang et al., ICLR 2024): another generator and
# other data
PUBLISHED_IMAGES = (
    ("DALL-E", "27.5", "17.9"),
    ("CogView", "27.1", "18.2"),
    ("LAFITE_G", "20.9", "24.9"),
    ("C1", "29.8", "22.4"),
    ("C2_1", "21.7", "24.4"),
    ("C2_2", "19.8", "25.5"),
    ("C3", "19.6", "26.0"),
)


def method_table(methods: Mapping[str, Method]) -> Table:
    """Return methods as a table, one row each."""
    columns = ["method", "learns from", "noise", "description"]
    rows = []
    for name, method in methods.items():
        noise = "sigma" if method.noisy else "none"
        rows.append([name, method.learns_from, noise, method.summary])
    return Table(columns, rows, left=columns)
