"""The steps that make c3-mini, on a small world in which captions are known from the features of their photo."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

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

        patch.setattr(make, "MODEL", {**make.MODEL, "text_cfg": {**make.MODEL["text_cfg"], "layers": 1}})
        patch.setattr(make, "image_tower", lambda: trunk)  # the packaged weights are not needed for what is tested
        yield make


def write_corpus(folder: Path) -> None:
    """120 photos (nothing reads them), half of the last 40 held out, and a file of captions alone."""
    rows = []
    for i in range(PHOTOS):
        what = f"{COLOURS[i % 4]} {THINGS[i % 5]}"
        split = "train" if i < 80 else ("val" if i % 2 else "test")
        rows.append({"image": f"{i}.jpg", "captions": [f"A {what}.", f"There is a {what} here"], "split": split})
    alone = [{"captions": ["A dog in a boat"] * 3}, {"captions": ["secret"], "has_photo_in_coco_cc": True}]
    write_jsonl(folder / "captions.jsonl", *rows)
    write_jsonl(folder / "alone.jsonl", *alone)


def features_of(made: ModuleType, run: object) -> tuple[object, list[object], torch.Tensor, torch.Tensor]:
    """What `make.features` gives, without the packages of weights."""
    from features import split_tower
    from student import text_inputs
    from words import word_vectors

    rng = np.random.default_rng(0)
    basis = {word: rng.normal(size=(192, 1, 1)) for word in COLOURS + THINGS}
    plain = np.stack([basis[COLOURS[i % 4]] + basis[THINGS[i % 5]] for i in range(PHOTOS)]) * np.ones((2, 2))
    late = split_tower(made.image_tower())[1]

    def seen(maps: np.ndarray) -> object:
        tensor = torch.from_numpy(maps.astype(np.float16))
        with torch.no_grad():
            return made.Photos(late(tensor.float()), tensor)

    views = [seen(plain[:80] + 0.1 * rng.normal(size=(80, 192, 2, 2))) for _ in range(2)]
    corpora = run.corpora  # type: ignore[attr-defined]
    words = word_vectors(corpora.captions, corpora.caption_rows(corpora.photo_rows()), dim=10)
    return seen(plain), views, torch.from_numpy(words), text_inputs(corpora.captions)


def test_a_model_comes_out_that_open_clip_loads(made: ModuleType, tmp_path: Path) -> None:
    write_corpus(tmp_path)
    arguments = Namespace(
        pairs=tmp_path, out=tmp_path / "out", captions=[tmp_path / "alone.jsonl"], views=1, seed=0, work=tmp_path,
        members=2, teacher_epochs=40, image_steps=20, text_epochs=60, tower_epochs=5,
    )  # fmt: skip
    run = made.make_run(arguments)
    assert run.corpora.photo_rows().tolist() == list(range(80))  # nothing held out is trained on
    assert run.corpora.training_captions.tolist() == [*range(160), 240, 241, 242]
    assert not any("secret" in caption for caption in run.corpora.captions)
    assert run.corpora.photo_rows("val").tolist() == list(range(81, 120, 2))
    plain, views, texts, tokens = features_of(made, run)
    model, log, seconds = made.train(run, plain, views, texts, tokens)
    assert log[0]["gap"] == pytest.approx(1.13, abs=0.1)
    assert log[-1]["gap"] > 0.3
    forwards, backwards = log[-1]["recall"].values()  # chance is 1 / 20
    assert forwards["recall@10"] > 0.45
    assert backwards["recall@1"] > 0.1
    made.write(tmp_path / "out", run, model, log, seconds)
    loaded = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")[0]
    assert loaded.visual.trunk.conv_head.weight.shape[0] == 1280
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")
    with torch.no_grad():
        sentence = tokenizer(["A red dog.", "zyzzyva"])
        np.testing.assert_allclose(loaded.eval().encode_text(sentence), model.encode_text(sentence), atol=2e-2)
        photos = torch.rand(3, 3, 64, 64)
        np.testing.assert_allclose(loaded.encode_image(photos), model.encode_image(photos), atol=3e-2)
