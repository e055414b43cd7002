"""The methods of the tables: their training data, the transform of their inputs, and their
published scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ...result_table import Table
from ...transforms import Pipeline, preset
from ...transforms.presets import is_recipe_file

CHOOSE_BY = "CIDEr"
Options = Mapping[str, Any]
"""Arguments of a verb, by name."""


@dataclass(frozen=True)
class Method:
    """A method of a table: options of the verbs that train and score its models.

    Attributes:
        train: options of `train_captioner`, or of `train_generator`: of one training, or of several
            that start from one another; none if nothing is trained.
        summary: one line.
        published: its published CIDEr on MS-COCO in percent, of another encoder and decoder; a dash
            for none.
        learns_from: in words: ``texts`` (each caption from its own embedding), ``pairs`` (from its
            image's embedding), ``pseudo pairs`` (each training image with the captions nearest to
            it), ``captions`` (a language model, which reads no embedding), ``images`` (a mapper
            before that language model, rewarded by the encoder), or ``photos`` (each from its own
            embedding).
        inference: preset that the inputs go through afterwards; None for that of the training.
        evaluate: options of `evaluate_captions`.
        asked_with: modality of the embeddings that captions or images are made from.
    """

    train: Sequence[Options]
    summary: str
    published: str = "–"
    learns_from: str = "texts"
    inference: str | None = None
    evaluate: Options = field(default_factory=dict)
    asked_with: str = "image"

    @property
    def noisy(self) -> bool:
        """True where sigma matters."""
        presets = [options["preset"] for options in self.train if "preset" in options]
        named = [name for name in presets if not is_recipe_file(name)]  # a file has its own sigma
        return any(preset(name).sigma is not None for name in named)

    @property
    def needs_encoder(self) -> bool:
        """True where the encoder is asked while it trains or writes."""
        return "steer" in self.evaluate or self.learns_from == "images"

    @property
    def chosen_on(self) -> str:
        """The data that the checkpoint is chosen on; a dash for no training."""
        return self.learns_from.replace("captions", "texts") if self.train else "–"


_C1: Options = {"preset": "c1"}
_C3: Options = {"preset": "c3"}
_CORRUPT: Options = {"preset": "c2-corrupt"}
_LANGUAGE_MODEL: Options = {"unconditional": True}

METHODS: Mapping[str, Method] = {
    "C1": Method([_C1], "Connect alone", "13.0"),
    "C2_1": Method([{"preset": "c2-collapse"}], "Connect, Collapse", "25.2"),
    "C2_2": Method([_CORRUPT], "Connect, Corrupt", "87.6"),
    "C3": Method([_C3], "Connect, Collapse, Corrupt", "93.3 ± 0.3"),
    "C3-retrieval": Method(
        [{"preset": "c3-retrieval"}],
        "C3, mixed with its nearest training captions (after IFCap, 2024)",
    ),
    "ZeroCap": Method(
        [_LANGUAGE_MODEL],
        "a language model whose context the encoder's gradient shifts (Tewel et al., 2022)",
        "34.5",
        learns_from="captions",
        evaluate={"steer": "zerocap", "limit": 100},
    ),
    "MAGIC": Method(
        [_LANGUAGE_MODEL],
        "a language model whose words the encoder scores again (Su et al., 2022)",
        "49.3",
        learns_from="captions",
        evaluate={"steer": "magic"},
    ),
    "ESPER": Method(
        [_LANGUAGE_MODEL, {"esper": True, "set": ()}],  # it has settings of its own
        "a mapper in front of a language model, rewarded by the encoder (Yu et al., 2023)",
        "78.2",
        learns_from="images",
    ),
    "CapDec": Method(
        [_CORRUPT], "noise on training texts (Nukrai et al., 2022)", "91.8", inference="capdec"
    ),
    "LAFITE": Method([{"preset": "lafite"}], "noise of 0.75 of each vector (Zhou et al., 2022)"),
    "TOMCap": Method(
        [{"preset": "tomcap"}], "texts moved to the moments of images, noise (2026)", "97.8"
    ),
    "DeCap": Method(
        [_C1], "images projected on a memory of texts (Li et al., 2023)", "50.6", inference="decap"
    ),
    "CLIPRe": Method([], "the nearest training caption (Su et al., 2022)", "25.6"),
    "WS-ClipCap": Method(
        [{**_C1, "pseudo_pairs": True}],
        "training images with their nearest captions",
        "33.7",
        learns_from="pseudo pairs",
    ),
    "WS-ClipCap-Multi": Method(
        [{**_CORRUPT, "pseudo_pairs": True}],
        "like WS-ClipCap, with noise",
        "74.6",
        learns_from="pseudo pairs",
    ),
    "paired": Method(
        [{**_C1, "pairs": 1.0}],
        "trained on real pairs, for comparison",
        "108.3",
        learns_from="pairs",
    ),
    "oracle": Method(
        [_C3], "C3, given one caption of an image; scored by the others", asked_with="text"
    ),
}
PUBLISHED = (
    "Published: CIDEr on MS-COCO, with other encoders and decoders: Zhang et al. (C3), ICLR 2024 "
    "(for ESPER: "
    "ESPER-Style, whose checkpoint was chosen by references); TOMCap (2026), with its retrieval."
)


_of_photos = partial(Method, learns_from="photos", asked_with="text")
IMAGE_METHODS: Mapping[str, Method] = {
    "C1": _of_photos([_C1], "Connect alone"),
    "C2_1": _of_photos([{"preset": "c2-collapse"}], "Connect, Collapse"),
    "C2_2": _of_photos([_CORRUPT], "Connect, Corrupt"),
    "C3": _of_photos([_C3], "Connect, Collapse, Corrupt"),
    "LAFITE": _of_photos(
        [{"preset": "lafite"}], "noise of 0.75 of each vector (Zhou et al., 2022)"
    ),
    "oracle": _of_photos(
        [_C3],
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


def recipe_method(path: str, c3: Method) -> Method:
    """Return the method that differs from C3 by the steps of its pipeline, which a file lists.

    Raises:
        TransformError: if the file is not there, or its steps are wrong.
    """
    recipe = Pipeline.from_config(path).config()
    train = [{"preset": path, "recipe": recipe}]
    return replace(c3, train=train, summary=f"the steps of {path}", published="–")


def method_table(methods: Mapping[str, Method]) -> Table:
    """Return methods as a table, one row each."""
    columns = ["method", "learns from", "noise", "description"]
    rows = []
    for name, method in methods.items():
        noise = "sigma" if method.noisy else "none"
        rows.append([name, method.learns_from, noise, method.summary])
    return Table(columns, rows, left=columns)
