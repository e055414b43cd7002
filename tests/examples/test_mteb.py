"""The example for mteb: its table, its numbers by other means, and a model of mteb behind it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from c3tools import load_encoder, preset
from tests.stores import unit

from .conftest import EXAMPLES

pytest.importorskip("mteb", reason="mteb is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries
FOLDER = EXAMPLES / "mteb"


@pytest.fixture(scope="module")
def scripts() -> Iterator[ModuleType]:
    """The module score_recipes, which imports the others, offline."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module("score_recipes")


def test_scores_are_those_of_the_readme(scripts: ModuleType) -> None:
    scores = scripts.score(scripts.C3Model())
    shown = re.findall(r"^\| (as it is|collapsed|fair) \| (.*) \|$", README, re.MULTILINE)
    assert [*scores] == [name for name, _ in shown]
    for name, cells in shown:
        # a query is 0.8 percent, and other machines round embeddings otherwise
        expected = [float(cell) for cell in cells.split(" | ")]
        assert [*scores[name].values()] == pytest.approx(expected, abs=1.5)
    assert collapsed_by_hand(scripts) == pytest.approx(scores["collapsed"]["photo-in-both"], 1e-3)


README = (FOLDER / "README.md").read_text("utf-8")


def collapsed_by_hand(scripts: ModuleType) -> float:
    """NDCG@10 in percent after Collapse, where the answer is a photo and the corpus has both."""
    encoder = load_encoder("c3-mini")
    fit_items = scripts.read_items("fit")
    test_items = scripts.read_items("test")
    image_mean = encoder.encode_images([item.photo for item in fit_items]).mean(0)
    captions = [caption for item in fit_items for caption in item.captions]
    text_mean = encoder.encode_texts(captions).mean(0)

    photo_items = test_items[::2]
    photos = encoder.encode_images([item.photo for item in photo_items])
    documents = encoder.encode_texts([item.captions[0] for item in test_items[1::2]])
    corpus = unit(np.concatenate([photos - image_mean, documents - text_mean]))
    gains = []
    for answer, item in enumerate(photo_items):
        queries = unit(encoder.encode_texts(item.captions[1:]) - text_mean)
        scores = queries @ corpus.T
        ranks = 1 + (scores > scores[:, [answer]]).sum(axis=1)
        gains += [1 / np.log2(1 + rank) if rank <= 10 else 0.0 for rank in ranks]
    return float(100 * np.mean(gains))


@pytest.fixture
def clip(tmp_path: Path) -> Any:
    """A tiny CLIP with random weights, as mteb loads one from the hub."""
    hf = pytest.importorskip("transformers", reason="transformers is not installed")
    from mteb.models.model_implementations.clip_models import CLIPModel
    from mteb.models.model_meta import ModelMeta
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    layers = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    layers["intermediate_size"] = 32
    words = {"<pad>": 0, "<unk>": 1, "a": 2, "dog": 3}
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")), pad_token="<pad>"
    )
    look = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    config = hf.CLIPConfig(
        text_config={**layers, "vocab_size": 4, "eos_token_id": 3},
        vision_config={**layers, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    hf.CLIPModel(config).save_pretrained(tmp_path)
    hf.CLIPProcessor(image_processor=look, tokenizer=tokenizer).save_pretrained(tmp_path)
    model = CLIPModel(str(tmp_path), revision="main", device="cpu")
    model.mteb_model_meta = ModelMeta.create_empty({"name": "tests/clip"})
    return model


def test_rows_of_a_model_of_mteb_are_encoded_by_what_they_have(
    scripts: ModuleType, clip: Any
) -> None:
    from datasets import Dataset
    from torch.utils.data import DataLoader

    photo = Image.new("RGB", (32, 32), "red")
    texts = ["a dog", "", "a", "a dog"]
    rows = Dataset.from_dict({"text": texts, "image": [None, photo, None, photo]})

    def encode(rows: Dataset, model: Any) -> Any:
        loader = DataLoader(rows, batch_size=3, collate_fn=scripts.as_columns)
        return np.asarray(
            model.encode(loader, task_metadata=None, hf_split="test", hf_subset="default")
        )

    text_rows = encode(rows.select([0, 2]).remove_columns("image"), clip)
    image_row = encode(rows.select([1]).remove_columns("text"), clip)
    pipeline = preset("c1").fit({"text": text_rows, "image": image_row})
    recipe = scripts.RecipeModel(clip, pipeline)
    expected = unit(np.stack([text_rows[0], image_row[0], text_rows[1]]))
    both = unit(expected[:1] + expected[1:2])
    np.testing.assert_allclose(encode(rows, recipe), [*expected, *both], atol=1e-5)
    assert recipe.mteb_model_meta.name == "tests/clip-c1"
