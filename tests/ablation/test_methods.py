from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from c3tools import devices
from c3tools.ablation import METHODS, AblationData, run_ablation
from c3tools.ablation.data import captions_of, fit_preset, training_rows
from c3tools.errors import DecoderError, MetricError
from c3tools.metrics.captions import score_captions
from c3tools.reporter import Reporter
from c3tools.seeds import keyed_normal

from ..captioning.conftest import make_world

pytest.importorskip("pycocoevalcap")
QUICK: dict[str, Any] = {"size": "tiny", "epochs": 1, "compute": devices.pick("cpu", "fp32")}


class Encoder:
    """An encoder of texts that tells them apart by their letters."""

    def __init__(self) -> None:
        self.texts = 0

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.texts += len(texts)
        rows = np.array([[text.count(chr(97 + i % 26)) + 0.1 for i in range(32)] for text in texts], np.float32)
        unit: npt.NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    monkeypatch.setattr("c3tools.captioning.steering.measure_rate", lambda encoder, modality: 1000.0)
    monkeypatch.setitem(METHODS, "ZeroCap", replace(METHODS["ZeroCap"], images=3))
    return Encoder()


def test_every_method_runs_and_is_scored(data: AblationData, encoder: Encoder) -> None:
    options: dict[str, Any] = {**QUICK, "set": ("max_tokens=8",), "encoder": encoder}
    runs = list(run_ablation(data, list(METHODS), sigma=0.1, **options))
    assert [run.method for run in runs] == list(METHODS)
    by_name = {run.method: run for run in runs}
    for run in runs:
        scored = [key for key in data.images.keys if key in run.captions]
        assert list(run.captions) == scored
        assert len(scored) == (3 if run.method == "ZeroCap" else 16)
        assert run.scores == pytest.approx(score_captions(run.captions, data.references).corpus)
        assert run.sigma == (0.1 if METHODS[run.method].noisy else 0.0)
    # methods that train alike are trained once
    assert by_name["CapDec"].captions == by_name["C2_2"].captions
    assert by_name["DeCap"].best_val_loss == by_name["C1"].best_val_loss
    assert by_name["CLIPRe"].best_val_loss is None
    # MAGIC and ZeroCap steer one language model, and ESPER's mapper is put in front of it
    assert by_name["MAGIC"].best_val_loss == by_name["ZeroCap"].best_val_loss != by_name["C1"].best_val_loss
    assert by_name["ESPER"].parameters > by_name["MAGIC"].parameters > 0
    assert by_name["ESPER"].training_seconds > by_name["MAGIC"].training_seconds > 0
    assert by_name["MAGIC"].parameters < by_name["C1"].parameters  # it has no prefix
    assert by_name["CLIPRe"].parameters == 0
    # CLIPRe: the nearest training caption, by definition
    nearest = np.argmax(data.images.embeddings @ data.train.embeddings.T, axis=1)
    assert list(by_name["CLIPRe"].captions.values()) == [data.train.captions[row] for row in nearest]


def test_seeds_matter_and_are_reproducible(data: AblationData) -> None:
    first, second = run_ablation(data, ["C3"], seeds=(0, 1), **QUICK)
    (again,) = run_ablation(data, ["C3"], seeds=(0,), **QUICK)
    assert again.captions == first.captions
    assert again.best_val_loss == first.best_val_loss
    assert second.best_val_loss != first.best_val_loss


def test_pseudo_pairs_are_training_images_with_their_nearest_training_captions(data: AblationData) -> None:
    train, val = training_rows(data, "pseudo-pairs")
    images = data.train_images
    assert images is not None
    held_out = set(data.val.items)
    assert {key.split("#")[0] for key in val.keys} == held_out
    assert {key.split("#")[0] for key in train.keys} == set(images.keys) - held_out
    assert (train.modality, val.modality) == ("image", "image")
    for rows in (train, val):
        for key, embedding, caption in list(zip(rows.keys, rows.embeddings, rows.captions, strict=True))[::7]:
            image, rank = key.split("#")
            np.testing.assert_array_equal(embedding, images.embeddings[images.keys.index(image)])
            order = np.argsort(-(data.train.embeddings @ embedding), kind="stable")
            assert caption == data.train.captions[order[int(rank)]]


def test_each_method_goes_through_the_transforms_of_its_paper(data: AblationData) -> None:
    """METHODS as (training, inference) on one image and one text, by their formulas."""
    text, image = data.train.embeddings[:1], data.images.embeddings[:1]
    key, item = [data.train.keys[0]], [data.train.items[0]]
    noise = keyed_normal(0, 0, key, text.shape[1])

    def unit(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        scaled: npt.NDArray[Any] = x / np.linalg.norm(x)
        return scaled

    def mixed(x: npt.NDArray[Any], own: str | None = None) -> npt.NDArray[Any]:
        others = [row for row, key in enumerate(data.train.items) if key != own]
        texts = np.stack([unit(row - means["text"]) for row in data.train.embeddings[others]])
        texts = texts.astype(np.float16).astype(np.float64)  # as the memory is kept
        nearest = texts[np.argsort(-(texts @ unit(x)))[:10]]
        return unit(unit(x) + unit(np.exp(nearest @ unit(x) / 0.05) @ nearest))

    means = {name: moments.mean for name, moments in data.moments.items()}
    weights = np.exp((data.train.embeddings @ image[0]) / 0.01 - 100)
    memory = unit((weights[:, None] * data.train.embeddings).sum(axis=0))
    noised = unit(text[0] + 0.2 * noise[0])
    expected = {
        "C1": (text[0], image[0]),
        "C2_1": (unit(text[0] - means["text"]), unit(image[0] - means["image"])),
        "C2_2": (noised, image[0]),
        "C3": (unit(text[0] - means["text"] + 0.2 * noise[0]), unit(image[0] - means["image"])),
        "C3-retrieval": (mixed(text[0] - means["text"] + 0.2 * noise[0], item[0]), mixed(image[0] - means["image"])),
        "CapDec": (noised, image[0]),
        "LAFITE": (unit(0.25 * text[0] + 0.75 * unit(noise[0])), image[0]),
        "DeCap": (text[0], memory),
    }
    for name, (trained, inferred) in expected.items():
        method = METHODS[name]
        assert method.training is not None
        pipeline = fit_preset(data, method.training, 0.2)
        training = pipeline.transform(text, modality="text", training=True, keys=key, items=item)
        inference = fit_preset(data, method.inference, 0.2).transform(image, modality="image")
        np.testing.assert_allclose(training[0], trained, atol=2e-5, err_msg=name)
        np.testing.assert_allclose(inference[0], inferred, atol=2e-5, err_msg=name)


def test_methods_that_ask_the_encoder_need_it(data: AblationData) -> None:
    for name in ("MAGIC", "ZeroCap", "ESPER"):
        with pytest.raises(DecoderError, match="needs an encoder"):
            next(run_ablation(data, [name], **QUICK))


def test_the_cost_of_steering_is_said_beforehand(data: AblationData, encoder: Encoder) -> None:
    said: list[tuple[str, int]] = []

    class Listener(Reporter):
        def message(self, text: str) -> None:
            said.append((text, encoder.texts))

    options: dict[str, Any] = {**QUICK, "set": ("max_tokens=2",), "encoder": encoder, "reporter": Listener()}
    list(run_ablation(data, ["MAGIC"], **options))
    ((text, asked),) = said
    # 45 texts for each of 12 words of 16 images, at 1,000 per second
    assert "45 texts for every word: about 8,640 texts for 16 images" in text
    assert "at 1,000 texts per second about 1 minute." in text
    assert asked == 0 < encoder.texts


def test_the_oracle_reads_a_caption_of_each_image(data: AblationData) -> None:
    texts = make_world().texts
    rows = {
        f"{item}: {caption}": row for row, (item, caption) in enumerate(zip(texts.items, texts.captions, strict=True))
    }
    first = [rows[f"{key}: {data.references[key][0]}"] for key in data.images.keys]
    np.testing.assert_allclose(captions_of(data), texts.embeddings[first], atol=1e-6)
    with pytest.raises(DecoderError, match="reads a caption of each scored image"):
        next(run_ablation(replace(data, described=None), ["oracle"], **QUICK))


def test_methods_that_need_images_say_so(data: AblationData) -> None:
    bare = replace(data, train_images=None)
    for name in ("paired", "WS-ClipCap", "ESPER"):
        with pytest.raises(DecoderError, match="needs training images"):
            next(run_ablation(bare, [name], **QUICK))
    with pytest.raises(MetricError, match="no images to caption"):
        next(run_ablation(replace(data, images=data.images.select(np.arange(0))), ["C1"]))
    with pytest.raises(DecoderError, match="There is no method C4"):
        next(run_ablation(data, ["C1", "C4"]))
