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

from .worlds import FP32, text_rows


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
def pipes(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The names of pipelines for embeddings of the bundled model, saved as their makers save them, by kind."""
    folder = tmp_path_factory.mktemp("pipes")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, pipe in {"kandinsky-2.2": kandinsky(encoder.dim), "unclip": unclip(encoder.dim, folder)}.items():
            pipe.save_pretrained(folder / name)
    return {name: f"{name}:{folder / name}" for name in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_drives_a_pipeline_without_a_prior(
    c3: C3, pipes: dict[str, str], store: Store, tmp_path: Path, kind: str
) -> None:
    command = ("generate", "a dog", "snow", "--generator", pipes[kind], "--store", store.path)
    result = c3(*command, "--sampling-steps", "2", "--json", "made.json")
    assert result.exit_code == 0, result.stderr
    images = json.loads((tmp_path / "made.json").read_text())["images"]
    first = [(tmp_path / "c3-images" / image["file"]).read_bytes() for image in images]
    assert first[0] != first[1]
    again = c3(*command[:2], *command[3:], "--sampling-steps", "2", "-o", "again")
    assert again.exit_code == 0, again.stderr
    assert (tmp_path / "again" / images[0]["file"]).read_bytes() == first[0]


def test_texts_come_to_where_images_are_in_the_generators_own_scale(
    pipes: dict[str, str], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = PretrainedGenerator(pipes["unclip"], store, FP32)
    assert made.norm == pytest.approx(0.5 * made.dim**0.5)  # by the statistics that the pipeline ships
    texts, images = (store.load(modality, "train").embeddings for modality in ("text", "image"))
    moved = unit_rows(made.pipeline.transform(texts, modality="text"))
    gap, left = (np.linalg.norm(rows.mean(0) - images.mean(0)) for rows in (texts, moved))
    assert left < 0.3 * gap
    told: list[torch.Tensor] = []

    class Pipe:
        def __call__(self, *, image_embeds: torch.Tensor, **options: Any) -> Any:
            told.append(image_embeds)
            raise KeyboardInterrupt

    monkeypatch.setattr(made, "pipe", Pipe())
    with pytest.raises(KeyboardInterrupt):
        made.generate(embeddings=texts[:1], sampling_steps=1)
    assert told[0].shape == (1, made.dim)
    assert float(told[0].norm()) == pytest.approx(made.norm, rel=0.15)


def test_without_statistics_the_scale_is_measured_with_the_model(pipes: dict[str, str], store: Store) -> None:
    from c3tools.assets.paths import PHOTOS
    from c3tools.encoders import load_network

    made = PretrainedGenerator(pipes["kandinsky-2.2"], store, FP32)
    network = load_network("c3-mini")
    photos = [network.preprocess.load(path)[0] for path in sorted((PHOTOS / "images").iterdir())[:8]]
    pixels = torch.from_numpy(np.stack(photos)).float() / 255
    pixels = (pixels - torch.tensor(network.preprocess.mean)) / torch.tensor(network.preprocess.std)
    with torch.inference_mode():
        lengths = network.model.encode_image(pixels.permute(0, 3, 1, 2)).norm(dim=1)  # type: ignore[operator]
    assert made.norm == pytest.approx(float(lengths.mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("dim", "architecture", "weights", "accepted"),
    [
        (768, "ViT-L-14", "openai", True),
        (768, "ViT-L-14-quickgelu", "openai", True),
        (768, "ViT-L-14", "laion2b_s32b_b82k", False),
        (512, "ViT-B-32", "openai", False),
    ],
)
def test_a_store_of_another_model_is_refused_with_both_named(
    tmp_path: Path, dim: int, architecture: str, weights: str, accepted: bool
) -> None:
    identity = ModelIdentity(name=f"{architecture}/{weights}", architecture=architecture, pretrained=weights)
    store = build_store(tmp_path / "store", text_rows(8), model=identity)
    object.__setattr__(store.info, "dim", dim)
    if accepted:
        check_identity("unclip:x", KINDS["unclip"], 768, store)
        return
    with pytest.raises(GeneratorError, match=f"ViT-L-14/openai, 768 dimensions.*{identity.name}, {dim} dimensions"):
        check_identity("unclip:x", KINDS["unclip"], 768, store)


def test_weights_that_cannot_be_had_are_an_error(store: Store, tmp_path: Path) -> None:
    with pytest.raises(GeneratorError, match="KandinskyV22Pipeline"):
        PretrainedGenerator(f"kandinsky-2.2:{tmp_path / 'nowhere'}", store)
    names = {"kandinsky-2.2:a/b": True, "karlo:a/b": False, str(tmp_path): False}
    assert {name: PretrainedGenerator.is_name(name) for name in names} == names
