"""Pre-trained generators, driven offline: tiny pipelines of diffusers with random weights, from configurations."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from c3tools.encoders import Encoder
from c3tools.errors import GeneratorError
from c3tools.identity import ModelIdentity
from c3tools.imaging import PretrainedGenerator
from c3tools.imaging.pretrained import KINDS, check_identity
from c3tools.moments import unit_rows
from c3tools.store import Store
from tests.conftest import C3, build_store

from .conftest import mini_store
from .worlds import FP32, image_rows, text_rows, write_photos


def kandinsky(dim: int) -> Any:
    from diffusers import DDPMScheduler, KandinskyV22Pipeline, UNet2DConditionModel, VQModel

    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(32, 64),
        layers_per_block=1,
        encoder_hid_dim=dim,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=16,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
    )
    movq = VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )
    return KandinskyV22Pipeline(unet=unet, scheduler=DDPMScheduler(), movq=movq)


def text_parts(folder: Path, dim: int) -> tuple[Any, Any]:
    """A CLIP tokenizer of a few letters, and a text configuration for it."""
    from transformers import CLIPTextConfig, CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=dim,
        intermediate_size=16,
        projection_dim=dim,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=len(vocabulary) - 2,
        eos_token_id=len(vocabulary) - 1,
        pad_token_id=len(vocabulary) - 1,
    )
    return tokenizer, config


def vision_encoder(dim: int) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            projection_dim=dim,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        )
    )


def karlo(dim: int, folder: Path) -> Any:
    from diffusers import UnCLIPImageVariationPipeline, UnCLIPScheduler, UNet2DConditionModel, UNet2DModel
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
    from transformers import CLIPImageProcessor, CLIPTextModelWithProjection

    tokenizer, config = text_parts(folder / "letters", dim)

    def super_resolution() -> Any:
        return UNet2DModel(
            sample_size=16,
            in_channels=6,
            out_channels=3,
            layers_per_block=1,
            block_out_channels=(32, 64),
            down_block_types=("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"),
            up_block_types=("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
        )

    return UnCLIPImageVariationPipeline(
        decoder=UNet2DConditionModel(
            sample_size=8,
            in_channels=3,
            out_channels=6,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            block_out_channels=(32, 64),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=4,
            resnet_time_scale_shift="scale_shift",
            class_embed_type="identity",
        ),
        text_encoder=CLIPTextModelWithProjection(config),
        tokenizer=tokenizer,
        text_proj=UnCLIPTextProjModel(clip_embeddings_dim=dim, time_embed_dim=128, cross_attention_dim=16),
        feature_extractor=CLIPImageProcessor(crop_size=16, size=16),
        image_encoder=vision_encoder(dim),
        super_res_first=super_resolution(),
        super_res_last=super_resolution(),
        decoder_scheduler=UnCLIPScheduler(
            variance_type="learned_range", prediction_type="epsilon", num_train_timesteps=100
        ),
        super_res_scheduler=UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="epsilon", num_train_timesteps=100
        ),
    )


def unclip(dim: int, folder: Path) -> Any:
    from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableUnCLIPImg2ImgPipeline, UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
    from transformers import CLIPImageProcessor, CLIPTextModel

    tokenizer, config = text_parts(folder / "letters", 16)
    normalizer = StableUnCLIPImageNormalizer(embedding_dim=dim)
    normalizer.std.data[:] = 0.5
    return StableUnCLIPImg2ImgPipeline(
        feature_extractor=CLIPImageProcessor(crop_size=16, size=16),
        image_encoder=vision_encoder(dim),
        image_normalizer=normalizer,
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(config),
        unet=UNet2DConditionModel(
            sample_size=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(32, 64),
            attention_head_dim=(2, 4),
            class_embed_type="projection",
            projection_class_embeddings_input_dim=2 * dim,
            cross_attention_dim=16,
            layers_per_block=1,
            use_linear_projection=True,
        ),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", set_alpha_to_one=False, steps_offset=1),
        vae=AutoencoderKL(block_out_channels=(32,), norm_num_groups=8),
    )


@pytest.fixture(scope="module")
def pipes(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pipelines for embeddings of the bundled model, saved as their makers save them."""
    folder = tmp_path_factory.mktemp("pipes")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = {
            "kandinsky-2.2": kandinsky(encoder.dim),
            "karlo": karlo(encoder.dim, folder),
            "unclip": unclip(encoder.dim, folder),
        }
        for name, pipe in made.items():
            pipe.save_pretrained(folder / name)
    index = folder / "karlo" / "model_index.json"  # the published files name another module than what saves them now
    index.write_text(json.dumps(json.loads(index.read_text()) | {"text_proj": ["unclip", "UnCLIPTextProjModel"]}))
    return {name: folder / name for name in made}


@pytest.fixture(scope="module")
def store(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return mini_store(tmp_path_factory.mktemp("mini") / "c3-store", encoder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_drives_a_pipeline_without_a_prior(
    c3: C3, pipes: dict[str, Path], store: Store, tmp_path: Path, kind: str
) -> None:
    command = ("generate", "a dog", "snow", "--generator", f"{kind}:{pipes[kind]}", "--store", store.path)
    result = c3(*command, "--sampling-steps", "2", "--json", "made.json")
    assert result.exit_code == 0, result.stderr
    images = json.loads((tmp_path / "made.json").read_text())["images"]
    first = [(tmp_path / "c3-images" / image["file"]).read_bytes() for image in images]
    assert first[0] != first[1]
    again = c3(*command[:2], *command[3:], "--sampling-steps", "2", "-o", "again")
    assert again.exit_code == 0, again.stderr
    assert (tmp_path / "again" / images[0]["file"]).read_bytes() == first[0]


def test_texts_come_to_where_images_are_in_the_generators_own_scale(
    pipes: dict[str, Path], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = PretrainedGenerator.load("unclip", str(pipes["unclip"]), store, FP32)
    assert made.norm == pytest.approx(0.5 * made.dim**0.5)  # by the statistics that the pipeline ships
    texts, images = store.load("text").embeddings, store.load("image", "train").embeddings
    moved = unit_rows(made.pipeline.transform(store.load("text", "train").embeddings, modality="text"))
    assert np.linalg.norm(moved.mean(0) - images.mean(0)) < 0.3 * np.linalg.norm(
        store.load("text", "train").embeddings.mean(0) - images.mean(0)
    )
    told: list[torch.Tensor] = []

    def spy(pipe: Any, e: torch.Tensor, mean: torch.Tensor, *rest: Any) -> Any:
        told.extend([e, mean])
        raise KeyboardInterrupt

    from dataclasses import replace

    kinds = {**KINDS, "unclip": replace(KINDS["unclip"], call=spy)}
    monkeypatch.setattr("c3tools.imaging.pretrained.KINDS", kinds)
    with pytest.raises(KeyboardInterrupt):
        made.generate(embeddings=texts[:1], sampling_steps=1)
    assert float(told[0].norm()) == pytest.approx(made.norm, rel=0.15)
    assert told[0].shape == told[1].shape == (1, made.dim)


def test_without_statistics_the_scale_is_measured_with_the_model(pipes: dict[str, Path], store: Store) -> None:
    from c3tools.assets.paths import PHOTOS
    from c3tools.encoders import load_network

    made = PretrainedGenerator.load("kandinsky-2.2", str(pipes["kandinsky-2.2"]), store, FP32)
    network = load_network("c3-mini")
    photos = [network.preprocess.load(path)[0] for path in sorted((PHOTOS / "images").iterdir())[:8]]
    pixels = torch.from_numpy(np.stack(photos)).float() / 255
    pixels = (pixels - torch.tensor(network.preprocess.mean)) / torch.tensor(network.preprocess.std)
    with torch.inference_mode():
        lengths = network.model.encode_image(pixels.permute(0, 3, 1, 2)).norm(dim=1)  # type: ignore[operator]
    assert made.norm == pytest.approx(float(lengths.mean()), rel=1e-4)


def test_a_store_of_another_model_is_refused_with_both_named(pipes: dict[str, Path], tmp_path: Path) -> None:
    rows = image_rows(write_photos(tmp_path / "photos", 8)), text_rows(8)
    small = build_store(tmp_path / "small", *rows)
    with pytest.raises(GeneratorError, match=r"needs embeddings of 256 dimensions, but the store .* test-model .* 16"):
        PretrainedGenerator.load("kandinsky-2.2", str(pipes["kandinsky-2.2"]), small)

    def check(dim: int, **identity: object) -> None:
        store = build_store(tmp_path / str(identity), *rows, model=ModelIdentity(identity))
        object.__setattr__(store.info, "dim", dim)
        check_identity("karlo:x", KINDS["karlo"], 768, store)

    check(768, name="ViT-L-14/openai", architecture="ViT-L-14", pretrained="openai")
    check(768, name="ViT-L-14-quickgelu/openai", architecture="ViT-L-14-quickgelu", pretrained="openai")
    with pytest.raises(GeneratorError, match=r"ViT-L-14/openai, but the store .* ViT-L-14/laion2b_s32b_b82k"):
        check(768, name="ViT-L-14/laion2b_s32b_b82k", architecture="ViT-L-14", pretrained="laion2b_s32b_b82k")
    with pytest.raises(
        GeneratorError, match=r"ViT-L-14/openai, 768 dimensions, .* 512 dimensions[\s\S]*--model ViT-L-14"
    ):
        check(512, name="ViT-B-32/openai", architecture="ViT-B-32", pretrained="openai")


def test_weights_that_cannot_be_had_are_an_error(store: Store, tmp_path: Path) -> None:
    with pytest.raises(GeneratorError, match="could not be loaded as KandinskyV22Pipeline"):
        PretrainedGenerator.load("kandinsky-2.2", str(tmp_path / "nowhere"), store)
    assert PretrainedGenerator.parse("kandinsky-2.2:a/b") == ("kandinsky-2.2", "a/b")
    assert PretrainedGenerator.parse(tmp_path) is None
