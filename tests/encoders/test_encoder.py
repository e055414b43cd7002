from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from c3tools import devices
from c3tools.assets.paths import C3_MINI, PHOTOS
from c3tools.devices import Compute, pick
from c3tools.encoders import Encoder, load_encoder, open_image
from c3tools.encoders.encoder import MAX_ASPECT_RATIO
from c3tools.encoders.loading import agreement
from c3tools.errors import EncoderError
from tests.encoders.test_loading import local_model

TEXTS = ["a dog", "two people ride bicycles along a river", "word " * 200, "", "snow on a hill"]


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
    whole = encoder._text_features

    def limited(tokens: torch.Tensor) -> torch.Tensor:
        sizes.append(len(tokens))
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(tokens)

    expected = encoder.encode_texts(TEXTS)
    monkeypatch.setitem(encoder._forward, "text", limited)
    monkeypatch.setattr(encoder, "_limits", {})
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), expected, atol=1e-5)
    assert sizes == [5, 2, 2, 1]
    encoder.encode_texts(TEXTS)
    assert sizes[4:] == [2, 2, 1]


def test_long_texts_come_in_smaller_batches(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, int]] = []
    whole = encoder._forward["text"]

    def noting(tokens: torch.Tensor) -> torch.Tensor:
        shapes.append((len(tokens), tokens.shape[1]))
        return whole(tokens)

    monkeypatch.setitem(encoder._forward, "text", noting)
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

    monkeypatch.setitem(encoder._forward, "text", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        encoder.encode_texts(TEXTS)


def test_one_input_that_does_not_fit_is_an_error(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(batch: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(encoder._forward, "text", full)
    monkeypatch.setattr(encoder, "_limits", {})
    with pytest.raises(torch.OutOfMemoryError):
        encoder.encode_texts(TEXTS)


def test_a_text_that_just_fits_is_not_counted_as_truncated(encoder: Encoder) -> None:
    texts = ["dog " * 75, "dog " * 76]  # 77 tokens with the start and the end, and one more
    assert encoder.truncated(texts, encoder.tokenise(texts)) == 1


def test_bf16_is_taken_only_where_the_model_bears_it(encoder: Encoder) -> None:
    forced = encoder.in_precision(Compute(torch.device("cpu"), "bf16"))
    paths = sorted((PHOTOS / "images").iterdir())[:8]
    cosines = (forced.encode_images(paths) * encoder.encode_images(paths)).sum(axis=1)
    # the probe must be at least as strict as photos are
    assert agreement(encoder, forced) < 0.999 or cosines.min() >= 0.999
    assert agreement(encoder, encoder) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_texts_are_run_without_padding_in_every_precision(encoder: Encoder, precision: str) -> None:
    rounded = encoder.in_precision(Compute(torch.device("cpu"), precision))
    widths: list[int] = []
    whole = rounded._forward["text"]

    def noting(tokens: torch.Tensor) -> torch.Tensor:
        widths.append(tokens.shape[1])
        return whole(tokens)

    rounded._forward["text"] = noting
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
    encoder = load_encoder(name, precision="fp32")
    assert not encoder.trims_texts
    model, _, _ = open_clip.create_model_and_transforms(name)
    with torch.inference_mode():
        expected = model.eval().encode_text(open_clip.get_tokenizer(name)(TEXTS), normalize=True).numpy()
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), expected, atol=1e-5)


def test_a_model_through_the_compiler_gives_the_same(tmp_path: Path) -> None:
    encoder = load_encoder(local_model(tmp_path / "m"), precision="fp32")
    compiled = encoder.through_compiler()
    assert compiled.compiled
    np.testing.assert_allclose(compiled.encode_texts(TEXTS), encoder.encode_texts(TEXTS), atol=1e-5)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_allclose(compiled.encode_pixels(pixels), encoder.encode_pixels(pixels), atol=1e-5)


def test_a_compiler_that_fails_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder(local_model(tmp_path / "m"), precision="fp32")

    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(EncoderError, match=r"(?s)No working C\+\+ compiler.*--compile"):
        encoder.through_compiler()


def test_images_may_be_files_pillow_images_or_arrays(encoder: Encoder, tmp_path: Path) -> None:
    image = Image.effect_noise((40, 30), 60).convert("RGB")
    image.save(tmp_path / "a.png")
    rows = encoder.encode_images([tmp_path / "a.png", image, np.asarray(image)])
    np.testing.assert_allclose(rows[1:], rows[[0, 0]], atol=1e-6)
    with pytest.raises(EncoderError, match="float64"):
        encoder.encode_images([np.zeros((4, 4, 3))])  # type: ignore[list-item]


EXIF_ORIENTATION = 0x0112


def gradient(width: int, height: int) -> Image.Image:
    x = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    y = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    source = gradient(40, 20)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    source.save(tmp_path / "turned.png", exif=exif)
    image, width, height = open_image(tmp_path / "turned.png")
    assert image.size == (20, 40) == (width, height)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(source.transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "YCbCr", "HSV"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "tiff" if mode in ("CMYK", "YCbCr", "HSV") else "png"
    path = tmp_path / f"x.{suffix}"
    source = gradient(30, 20).convert(mode)
    if mode == "HSV":
        source = source.convert("RGB")
    source.save(path)
    image, width, height = open_image(path)
    assert (image.mode, width, height) == ("RGB", 30, 20)


def test_sixteen_bit_images_keep_their_range(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    image, _, _ = open_image(tmp_path / "deep.png")
    expected = (values.astype(float) / 65535 * 255).astype(np.uint8)
    np.testing.assert_allclose(np.asarray(image)[..., 0], expected, atol=1)


def test_an_animated_gif_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    image, _, _ = open_image(tmp_path / "a.gif")
    assert image.getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(1, 1), (20_000, 10), (10, 20_000), (3, 2)])
def test_extreme_sizes_are_preprocessed(tmp_path: Path, encoder: Encoder, size: tuple[int, int]) -> None:
    gradient(*size).save(tmp_path / "x.png")
    pixels, width, height = encoder.preprocess.load(tmp_path / "x.png")
    assert pixels.shape == (352, 352, 3)
    assert pixels.dtype == np.uint8
    assert (width, height) == size


def test_only_the_middle_of_an_extreme_image_is_looked_at(encoder: Encoder) -> None:
    wide = Image.new("RGB", (4000, 10), "black")
    half = MAX_ASPECT_RATIO * 10 // 2
    wide.paste((255, 255, 255), (2000 - half, 0, 2000 + half, 10))
    assert encoder.preprocess(wide).min() == 255


def test_large_jpegs_decoded_at_a_lower_scale_embed_the_same(tmp_path: Path, encoder: Encoder) -> None:
    from c3tools.assets.paths import PHOTOS

    for number, path in enumerate(sorted((PHOTOS / "images").iterdir())[:2]):
        with Image.open(path) as photo:
            large = photo.convert("RGB").resize((2400, 1800), Image.Resampling.BICUBIC)
        file = tmp_path / f"{number}.jpg"
        large.save(file, quality=92)
        scaled, width, height = open_image(file, (224, 224))
        assert scaled.width < 2400
        assert (width, height) == (2400, 1800)
        plain, _, _ = open_image(file)
        a, b = encoder.encode_images([scaled, plain])
        assert a @ b >= 0.999


@pytest.mark.parametrize("damage", ["empty", "truncated", "text"])
def test_damaged_files_raise(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.jpg"
    gradient(200, 200).save(path)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"not an image"}[damage])
    with pytest.raises(OSError, match=r"truncated|cannot identify"):
        open_image(path)


def test_a_decompression_bomb_raises(tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(Image.DecompressionBombError):
        open_image(tmp_path / "bomb.png")
