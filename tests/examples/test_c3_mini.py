"""The steps that make c3-mini, on a small world in which captions are known from the features of
their photo.

And the script that makes the bundled captioner, on a few captions.
"""

from __future__ import annotations

import importlib
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch

from tests.conftest import write_jsonl

from .conftest import EXAMPLES

COLOURS, THINGS = ["red", "green", "blue", "black"], ["dog", "boat", "horse", "house", "tree"]
PHOTOS = 120


@pytest.fixture(scope="module")
def made() -> Iterator[ModuleType]:
    torch.manual_seed(0)
    trunk = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES / "c3_mini")
        import make

        patch.setattr(
            make, "MODEL", {**make.MODEL, "text_cfg": {**make.MODEL["text_cfg"], "layers": 1}}
        )
        # the packaged weights are not needed for what is tested
        patch.setattr(make, "image_tower", lambda: trunk)
        yield make


def row(number: int, *captions: str, **more: Any) -> dict[str, Any]:
    return {"image": f"{number}.jpg", "captions": [*captions], **more}


def write_corpus(folder: Path) -> None:
    """120 photos (nothing reads them), half of the last 40 held out, and a file of captions
    alone."""
    rows = []
    for i in range(PHOTOS):
        what, split = (
            f"{COLOURS[i % 4]} {THINGS[i % 5]}",
            "train" if i < 80 else ("test", "val")[i % 2],
        )
        rows.append(row(i, f"A {what}.", f"There is a {what} here", split=split))
    write_jsonl(folder / "captions.jsonl", *rows)
    write_jsonl(
        folder / "alone.jsonl",
        row(0, *["A dog in a boat"] * 3),
        row(1, "secret", has_photo_in_coco_cc=True),
    )


def features_of(made: ModuleType, run: Any) -> Any:
    """What `make.features` gives, without the packages of weights."""
    from features import split_tower
    from student import text_inputs
    from words import word_vectors

    rng = np.random.default_rng(0)
    basis = {word: rng.normal(size=(192, 1, 1)) for word in COLOURS + THINGS}
    plain = np.stack(
        [basis[COLOURS[i % 4]] + basis[THINGS[i % 5]] for i in range(PHOTOS)]
    ) * np.ones((2, 2))
    late = split_tower(made.image_tower())[1]

    def seen(maps: np.ndarray) -> object:
        tensor = torch.from_numpy(maps.astype(np.float16))
        with torch.no_grad():
            return made.Photos(late(tensor.float()), tensor)

    views = [seen(plain[:80] + 0.1 * rng.normal(size=(80, 192, 2, 2))) for _ in range(2)]
    captions = run.corpora.captions
    words = word_vectors(captions, run.corpora.caption_rows(run.corpora.photo_rows()), dim=10)
    return seen(plain), views, torch.from_numpy(words), text_inputs(captions)


def test_a_model_comes_out_that_open_clip_loads(made: ModuleType, tmp_path: Path) -> None:
    write_corpus(tmp_path)
    arguments = Namespace(
        pairs=tmp_path, out=tmp_path / "out", captions=[tmp_path / "alone.jsonl"], views=1,
        seed=0, work=tmp_path, members=2, teacher_epochs=40, image_steps=20, text_epochs=60,
        tower_epochs=5,
    )  # fmt: skip
    run = made.make_run(arguments)
    assert run.corpora.photo_rows().tolist() == [*range(80)]  # nothing held out is trained on
    assert run.corpora.training_captions.tolist() == [*range(160), 240, 241, 242]
    assert not any("secret" in caption for caption in run.corpora.captions)
    assert run.corpora.photo_rows("val").tolist() == [*range(81, 120, 2)]
    model, log, seconds = made.train(run, *features_of(made, run))
    forwards, backwards = log[-1]["recall"].values()  # chance is 1 / 20
    assert log[0]["gap"] == pytest.approx(1.13, abs=0.1)
    assert log[-1]["gap"] > 0.3 and forwards["recall@10"] > 0.45 and backwards["recall@1"] > 0.1
    made.write(tmp_path / "out", run, model, log, seconds)
    place = f"local-dir:{tmp_path / 'out'}"
    loaded = open_clip.create_model_and_transforms(place)[0].eval()
    assert loaded.visual.trunk.conv_head.weight.shape[0] == 1280
    sentences, photos = (
        open_clip.get_tokenizer(place)(["A red dog.", "zyzzyva"]),
        torch.rand(3, 3, 64, 64),
    )
    with torch.no_grad():
        np.testing.assert_allclose(
            loaded.encode_text(sentences), model.encode_text(sentences), atol=2e-2
        )
        np.testing.assert_allclose(
            loaded.encode_image(photos), model.encode_image(photos), atol=3e-2
        )


def test_what_is_held_out_is_no_training_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "c3_mini")
    maker = importlib.import_module("captioner")
    monkeypatch.setattr(maker, "PHOTOS", tmp_path / "bundled")
    train, val = row(1, "A dog", "A cat", split="train"), row(2, "A boat", split="val")
    alone = [row(900, "A lamp on a table .", "A BOAT .", "a tree"), row(903, "A swan on a lake")]
    alone += [row(901, "A kite", has_photo_in_coco_cc_more=True)]
    alone += [row(902, "a kite", "A lamp", has_photo_in_coco_cc_more=False)]
    lines = {"pairs": [train, val, row(3, "A tree", split="test")], "alone": alone}
    lines["bundled"] = [row(903, "Something else", split="val2017")]
    for name, rows in lines.items():
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "captions.jsonl", *rows)
    found = maker.training_rows(tmp_path / "pairs", [tmp_path / "alone/captions.jsonl"])
    # without the sentences of photos of val and test, and of the row that is marked
    texts = [row(900, "A lamp on a table .", split="train"), row(902, "A lamp", split="train")]
    assert found == [train, *texts, val]
