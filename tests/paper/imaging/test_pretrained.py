"""A pre-trained generator, driven offline: a tiny pipeline of diffusers with random weights, from
configurations."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from c3tools.encoders import Encoder
from c3tools.errors import GeneratorError
from c3tools.identity import ModelIdentity
from c3tools.paper.imaging.generator import _MODEL_OF_DIM, PretrainedGenerator
from c3tools.store import Store
from tests.conftest import C3, done, make_store, unit_rows
from tests.stores import unit

from .conftest import FP32, mini_store

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def unclip(dim: int, folder: Path) -> Any:
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        DDPMScheduler,
        StableUnCLIPImg2ImgPipeline,
        UNet2DConditionModel,
    )
    from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
    from transformers import (
        CLIPImageProcessor,
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTokenizer,
        CLIPVisionConfig,
    )
    from transformers import CLIPVisionModelWithProjection as VisionModel

    # no prompt has a word
    (folder / "vocab.json").write_text('{"<|startoftext|>": 0, "<|endoftext|>": 1}')
    (folder / "merges.txt").write_text("#version: 0.2\n")
    words = {**SMALL, "vocab_size": 2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    pixels = {**SMALL, "projection_dim": dim, "image_size": 16, "patch_size": 8}
    normalizer = StableUnCLIPImageNormalizer(embedding_dim=dim)
    normalizer.mean.data[:], normalizer.std.data[:] = 0.3, 0.4
    unet = {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "attention_head_dim": (2, 4),
        "layers_per_block": 1,
    }
    unet |= {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2 * dim}
    unet["cross_attention_dim"] = 16
    unet |= {
        f"{way}_block_types": [f"{way.title()}Block2D", f"CrossAttn{way.title()}Block2D"]
        for way in ("up", "down")
    }
    return StableUnCLIPImg2ImgPipeline(
        feature_extractor=CLIPImageProcessor(crop_size=16, size=16),
        image_encoder=VisionModel(CLIPVisionConfig(**pixels)),
        image_normalizer=normalizer,
        image_noising_scheduler=DDPMScheduler(),
        tokenizer=CLIPTokenizer(
            str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8
        ),
        text_encoder=CLIPTextModel(CLIPTextConfig(max_position_embeddings=8, **words)),
        unet=UNet2DConditionModel(**unet),
        scheduler=DDIMScheduler(),
        vae=AutoencoderKL(block_out_channels=(32,), norm_num_groups=8),
    )


@pytest.fixture(scope="module")
def name(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pipeline for embeddings of the bundled model, saved as its makers save theirs."""
    folder = tmp_path_factory.mktemp("pipe")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unclip(encoder.dim, folder).save_pretrained(folder / "unclip")
    return f"unclip:{folder / 'unclip'}"


def test_a_text_drives_a_pipeline_without_a_prior(c3: C3, name: str, store: Store) -> None:
    shared = ("--generator", name, "--store", store.path, "--sampling-steps", "2")
    said = done(c3("generate", "a dog", "snow", *shared, "--json", "made.json")).output
    assert "it/s" not in said
    files = [image["file"] for image in json.loads(Path("made.json").read_text())["images"]]
    done(c3("generate", "a dog", *shared, "-o", "again"))
    places = ("c3-images", files[0]), ("again", files[0]), ("c3-images", files[1])
    first, again, other = (Path(*place).read_bytes() for place in places)
    assert first == again != other


def test_texts_come_to_where_images_are_in_the_generators_own_scale(
    name: str, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = mini_store(tmp_path / "c3-store", encoder, photos=40)
    made = PretrainedGenerator(name, store, FP32)
    # by the statistics that the pipeline ships
    assert made.norm == pytest.approx(0.5 * made.dim**0.5)
    assert made.guidance == 10
    texts, images = (store.load(modality, "train").embeddings for modality in ("text", "image"))
    moved = unit(made.pipeline.transform(texts, modality="text"))
    gap, left = (np.linalg.norm(rows.mean(0) - images.mean(0)) for rows in (texts, moved))
    assert left < 0.3 * gap
    told = {}

    def pipe(**options: Any) -> Any:
        told.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(made, "pipe", pipe)
    with pytest.raises(KeyboardInterrupt):
        made.generate(embeddings=texts[:2], sampling_steps=1)
    assert told["image_embeds"].shape == (1, made.dim)
    assert float(told["image_embeds"].norm()) == pytest.approx(made.norm, rel=0.15)


def test_a_store_of_another_model_is_refused_with_both_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("c3tools.paper.imaging.generator._MODEL_OF_DIM", {256: "ViT-L-14/openai"})

    def generator(weights: str, dim: int) -> PretrainedGenerator:
        model = ModelIdentity(
            name="local-dir:m", architecture="ViT-L-14-quickgelu", pretrained=weights
        )
        rows = unit_rows(20, dim), unit_rows(20, dim, 1)
        return PretrainedGenerator(
            name, make_store(tmp_path / f"{weights}{dim}", *rows, model=model), FP32
        )

    assert generator("openai", 256).model.name == "local-dir:m"
    for weights, dim in (("laion2b", 256), ("openai", 12)):
        with pytest.raises(
            GeneratorError, match=f"ViT-L-14/openai, 256 dimensions.*local-dir:m, {dim} dimensions"
        ):
            generator(weights, dim)


def test_the_encoders_of_published_pipelines_have_their_dimensions() -> None:
    for dim, name in _MODEL_OF_DIM.items():
        config = open_clip.get_model_config(name.partition("/")[0])
        assert config is not None and config["embed_dim"] == dim


def test_weights_that_cannot_be_had_are_an_error(store: Store, tmp_path: Path) -> None:
    with pytest.raises(GeneratorError, match="StableUnCLIPImg2ImgPipeline"):
        PretrainedGenerator(f"unclip:{tmp_path / 'nowhere'}", store, FP32)
