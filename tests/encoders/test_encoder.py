from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from c3tools.encoders.probe import agreement, probe_embeddings
from PIL import Image

from c3tools import devices
from c3tools.assets.paths import C3_MINI, PHOTOS
from c3tools.devices import pick
from c3tools.encoders import Encoder, load_encoder, open_image
from c3tools.errors import EncoderError
from tests.encoders.test_loading import local_model

TEXTS = ["a dog", "two people ride bicycles along a river", "word " * 200, "", "snow on a hill"]


def forward(encoder: Encoder) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """What the backend torch runs for each modality."""
    return encoder.backend._forward  # type: ignore[attr-defined,no-any-return]


@pytest.fixture(scope="module")
def plain() -> tuple[Any, Any, Any]:
    """The bundled model as open_clip itself runs it: padded texts, its own preprocessing."""
    name = f"local-dir:{C3_MINI}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    return model.eval(), transform, open_clip.get_tokenizer(name)


def test_images_are_embedded_as_open_clip_does(encoder: Encoder, plain: tuple[Any, Any, Any]) -> None:
    model, transform, _ = plain
    paths = sorted((PHOTOS / "images").iterdir())[:5]
    with torch.inference_mode():
        batch = torch.stack([transform(open_image(path)[0]) for path in paths])
        expected = model.encode_image(batch, normalize=True).numpy()
    np.testing.assert_allclose(encoder.encode_images(paths), expected, atol=2e-6)


def test_texts_without_padding_are_embedded_as_with_it(encoder: Encoder, plain: tuple[Any, Any, Any]) -> None:
    model, _, tokenizer = plain
    assert encoder.trims_texts
    with torch.inference_mode():
        expected = model.encode_text(tokenizer(TEXTS), normalize=True).numpy()
    np.testing.assert_allclose(encoder.encode_texts(TEXTS, batch_size=2), expected, atol=1e-5)


def test_truncated_texts_are_counted(encoder: Encoder) -> None:
    assert encoder.truncated(TEXTS, encoder.tokenise(TEXTS)) == 1


def test_nothing_gives_an_empty_matrix(encoder: Encoder) -> None:
    assert encoder.encode_texts([]).shape == (0, 256)
    assert encoder.encode_images([]).shape == (0, 256)


def test_a_file_that_is_no_image_is_named(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_text("no")
    with pytest.raises(EncoderError, match=r"x\.jpg cannot be read as an image"):
        encoder.encode_images([tmp_path / "x.jpg"])


def test_an_out_of_memory_error_halves_the_batch_and_those_that_follow(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    whole = forward(encoder)["text"]

    def limited(tokens: torch.Tensor) -> torch.Tensor:
        sizes.append(len(tokens))
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(tokens)

    expected = encoder.encode_texts(TEXTS)
    monkeypatch.setitem(forward(encoder), "text", limited)
    monkeypatch.setattr(encoder.backend, "_limits", {})
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), expected, atol=1e-5)
    assert sizes == [5, 2, 2, 1]
    encoder.encode_texts(TEXTS)
    assert sizes[4:] == [2, 2, 1]


def test_long_texts_come_in_smaller_batches(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, int]] = []
    whole = forward(encoder)["text"]

    def noting(tokens: torch.Tensor) -> torch.Tensor:
        shapes.append((len(tokens), tokens.shape[1]))
        return whole(tokens)

    monkeypatch.setitem(forward(encoder), "text", noting)
    texts = ["dog " * (1 + number % 90) for number in range(300)]
    expected = encoder.encode_texts(texts, batch_size=300)
    shapes.clear()
    np.testing.assert_allclose(encoder.encode_texts(texts), expected, atol=1e-5)
    assert sum(n for n, _ in shapes) == 300
    room = encoder.batch_size("text") * 16
    assert all(n * length <= room for n, length in shapes)


def test_other_errors_are_not_taken_for_lack_of_memory(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(batch: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes differ")

    monkeypatch.setitem(forward(encoder), "text", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        encoder.encode_texts(TEXTS)


def test_one_input_that_does_not_fit_is_an_error(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(batch: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(forward(encoder), "text", full)
    monkeypatch.setattr(encoder.backend, "_limits", {})
    with pytest.raises(torch.OutOfMemoryError):
        encoder.encode_texts(TEXTS)


def test_a_text_that_just_fits_is_not_counted_as_truncated(encoder: Encoder) -> None:
    texts = ["dog " * 75, "dog " * 76]  # 77 tokens with the start and the end, and one more
    assert encoder.truncated(texts, encoder.tokenise(texts)) == 1


def test_bf16_is_taken_only_where_the_model_bears_it(encoder: Encoder) -> None:
    forced = load_encoder(backend="torch", precision="bf16")
    paths = sorted((PHOTOS / "images").iterdir())[30:40]
    cosines = (forced.encode_images(paths) * encoder.encode_images(paths)).sum(axis=1)
    # the probe is like photos are
    expected = probe_embeddings(encoder)
    assert abs(agreement(expected, probe_embeddings(forced)) - cosines.min()) < 2e-3
    assert agreement(expected, expected) == pytest.approx(1, abs=1e-6)


def test_texts_are_run_without_padding_in_bf16(encoder: Encoder) -> None:
    rounded = load_encoder(backend="torch", precision="bf16")
    widths: list[int] = []
    whole = forward(rounded)["text"]

    def noting(tokens: torch.Tensor) -> torch.Tensor:
        widths.append(tokens.shape[1])
        return whole(tokens)

    forward(rounded)["text"] = noting
    cosines = (rounded.encode_texts(TEXTS[:2]) * encoder.encode_texts(TEXTS[:2])).sum(axis=1)
    assert cosines.min() > 0.99
    assert max(widths) < 20


def test_bf16_that_is_slower_than_fp32_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_cpu_flag", lambda name: name == "_is_avx512_bf16_supported")
    for speed, expected in ((0.5, "fp32"), (2.0, "bf16")):
        monkeypatch.setattr(devices, "cpu_bf16_speed", lambda speed=speed: speed)
        assert pick("cpu").precision == expected
    monkeypatch.setattr(devices, "_cpu_flag", lambda name: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert pick("cpu").precision == "fp32"


@pytest.mark.parametrize("changes", [{"no_causal_mask": True}, {"pool_type": "last"}, {"pool_type": "first"}])
def test_towers_that_look_at_padding_are_run_whole(tmp_path: Path, changes: dict[str, object]) -> None:
    name = local_model(tmp_path / "m", **changes)
    encoder = load_encoder(name, backend="torch", precision="fp32")
    assert not encoder.trims_texts
    model, _, _ = open_clip.create_model_and_transforms(name)
    with torch.inference_mode():
        expected = model.eval().encode_text(open_clip.get_tokenizer(name)(TEXTS), normalize=True).numpy()
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), expected, atol=1e-5)


def test_a_model_through_the_compiler_gives_the_same(tmp_path: Path) -> None:
    name = local_model(tmp_path / "m")
    encoder, compiled = (
        load_encoder(name, backend="torch", precision="fp32", compiled=compiled) for compiled in (False, True)
    )
    assert compiled.compiled
    np.testing.assert_allclose(compiled.encode_texts(TEXTS), encoder.encode_texts(TEXTS), atol=1e-5)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_allclose(compiled.encode_pixels(pixels), encoder.encode_pixels(pixels), atol=1e-5)


def test_a_compiler_that_fails_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = local_model(tmp_path / "m")

    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(EncoderError, match=r"(?s)No working C\+\+ compiler.*--compile"):
        load_encoder(name, compiled=True)


def test_images_may_be_files_pillow_images_or_arrays(encoder: Encoder, tmp_path: Path) -> None:
    image = Image.effect_noise((40, 30), 60).convert("RGB")
    image.save(tmp_path / "a.png")
    rows = encoder.encode_images([tmp_path / "a.png", image, np.asarray(image)])
    np.testing.assert_allclose(rows[1:], rows[[0, 0]], atol=1e-6)
    with pytest.raises(EncoderError, match="float64"):
        encoder.encode_images([np.zeros((4, 4, 3))])  # type: ignore[list-item]
