from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from c3tools import devices
from c3tools.assets.paths import C3_MINI, PHOTOS
from c3tools.devices import Compute, pick
from c3tools.encoders import ModelName, load_encoder, load_recorded_encoder, open_image, resolve_encoder
from c3tools.encoders.loading import agreement, weights_sha256
from c3tools.errors import C3Error, EncoderError
from c3tools.reporter import Reporter

TEXTS = ["a dog", "two people ride bicycles along a river", "word " * 200, "", "snow on a hill"]


@pytest.fixture(scope="module")
def plain():
    """The bundled model as open_clip itself runs it: padded texts, its own preprocessing."""
    name = f"local-dir:{C3_MINI}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    return model.eval(), transform, open_clip.get_tokenizer(name)


def test_images_are_embedded_as_open_clip_does(encoder, plain) -> None:
    model, transform, _ = plain
    paths = sorted((PHOTOS / "images").iterdir())[:5]
    with torch.inference_mode():
        batch = torch.stack([transform(open_image(path)[0]) for path in paths])
        expected = model.encode_image(batch, normalize=True).numpy()
    np.testing.assert_allclose(encoder.encode_images(paths), expected, atol=2e-6)


def test_texts_without_padding_are_embedded_as_with_it(encoder, plain) -> None:
    model, _, tokenizer = plain
    assert encoder.trims_texts
    with torch.inference_mode():
        expected = model.encode_text(tokenizer(TEXTS), normalize=True).numpy()
    np.testing.assert_allclose(encoder.encode_texts(TEXTS, batch_size=2), expected, atol=1e-5)


def test_truncated_texts_are_counted(encoder) -> None:
    assert encoder.truncated(TEXTS, encoder.tokenise(TEXTS)) == 1


def test_nothing_gives_an_empty_matrix(encoder) -> None:
    assert encoder.encode_texts([]).shape == (0, 256)
    assert encoder.encode_images([]).shape == (0, 256)


def test_a_file_that_is_no_image_is_named(encoder, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_text("no")
    with pytest.raises(EncoderError, match=r"x\.jpg cannot be read as an image"):
        encoder.encode_images([tmp_path / "x.jpg"])


def test_an_out_of_memory_error_halves_the_batch_and_those_that_follow(encoder, monkeypatch) -> None:
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


def test_long_texts_come_in_smaller_batches(encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, int]] = []
    whole = encoder._forward["text"]
    monkeypatch.setitem(encoder._forward, "text", lambda t: shapes.append(tuple(t.shape)) or whole(t))
    texts = ["dog " * (1 + number % 90) for number in range(300)]
    expected = encoder.encode_texts(texts, batch_size=300)
    shapes.clear()
    np.testing.assert_allclose(encoder.encode_texts(texts), expected, atol=1e-5)
    assert sum(n for n, _ in shapes) == 300
    room = encoder.batch_size("text") * 16
    assert all(n * length <= room for n, length in shapes)


def test_other_errors_are_not_taken_for_lack_of_memory(encoder, monkeypatch) -> None:
    def broken(batch: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes differ")

    monkeypatch.setitem(encoder._forward, "text", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        encoder.encode_texts(TEXTS)


def test_one_input_that_does_not_fit_is_an_error(encoder, monkeypatch) -> None:
    def full(batch: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(encoder._forward, "text", full)
    monkeypatch.setattr(encoder, "_limits", {})
    with pytest.raises(torch.OutOfMemoryError):
        encoder.encode_texts(TEXTS)


def test_a_text_that_just_fits_is_not_counted_as_truncated(encoder) -> None:
    texts = ["dog " * 75, "dog " * 76]  # 77 tokens with the start and the end, and one more
    assert encoder.truncated(texts, encoder.tokenise(texts)) == 1


def test_bf16_is_taken_only_where_the_model_bears_it(encoder) -> None:
    forced = encoder.in_precision(Compute(torch.device("cpu"), "bf16"))
    paths = sorted((PHOTOS / "images").iterdir())[:8]
    cosines = (forced.encode_images(paths) * encoder.encode_images(paths)).sum(axis=1)
    # the probe must be at least as strict as photos are
    assert agreement(encoder, forced) < 0.999 or cosines.min() >= 0.999
    assert agreement(encoder, encoder) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_texts_are_run_without_padding_in_every_precision(encoder, precision: str) -> None:
    rounded = encoder.in_precision(Compute(torch.device("cpu"), precision))
    widths: list[int] = []
    whole = rounded._forward["text"]
    rounded._forward["text"] = lambda tokens: widths.append(tokens.shape[1]) or whole(tokens)
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


def test_the_speed_of_bf16_is_a_ratio() -> None:
    assert 0.01 < devices.cpu_bf16_speed() < 100


def local_model(folder: Path, **text_changes: object) -> str:
    """A tiny model with random weights, as a local folder."""
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1, **text_changes}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(71)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return f"local-dir:{folder}"


@pytest.mark.parametrize("changes", [{"no_causal_mask": True}, {"pool_type": "last"}, {"pool_type": "first"}])
def test_towers_that_look_at_padding_are_run_whole(tmp_path: Path, changes: dict[str, object]) -> None:
    name = local_model(tmp_path / "m", **changes)
    encoder = load_encoder(name, precision="fp32")
    assert not encoder.trims_texts
    model, _, _ = open_clip.create_model_and_transforms(name)
    with torch.inference_mode():
        expected = model.eval().encode_text(open_clip.get_tokenizer(name)(TEXTS), normalize=True).numpy()
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), expected, atol=1e-5)


def test_random_weights_are_those_of_the_seed(tmp_path: Path) -> None:
    name = local_model(tmp_path / "m")
    one, same, other = (load_encoder(name, random_init=seed) for seed in (1, 1, 2))
    assert one.identity["weights_sha256"] == same.identity["weights_sha256"] != other.identity["weights_sha256"]
    assert one.identity["random_init"] == 1
    assert one.identity["weights_sha256"] != load_encoder(name).identity["weights_sha256"]


def test_random_state_of_the_caller_is_left_alone(tmp_path: Path) -> None:
    name = local_model(tmp_path / "m")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_encoder(name, random_init=3)
    assert torch.equal(torch.rand(3), expected)


def test_a_recorded_model_whose_weights_changed_is_refused(tmp_path: Path) -> None:
    name = local_model(tmp_path / "m")
    identity = load_encoder(name).identity
    assert load_recorded_encoder(identity).identity == identity
    weights = tmp_path / "m" / "open_clip_pytorch_model.bin"
    state = torch.load(weights, weights_only=True)
    state["logit_scale"] += 1
    torch.save(state, weights)
    with pytest.raises(EncoderError, match="other weights now"):
        load_recorded_encoder(identity)


def test_the_weights_hash_depends_on_every_value(tmp_path: Path) -> None:
    network = torch.nn.Linear(3, 2)
    digest = weights_sha256(network)
    assert digest == weights_sha256(copy.deepcopy(network))
    with torch.no_grad():
        network.bias[1] += 1e-6
    assert digest != weights_sha256(network)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-33/openai", "Did you mean ViT-B-32"),
        ("c3mini", "Did you mean c3-mini"),
        ("ViT-B-32", "ViT-B-32/openai"),
        ("ViT-B-32/opnai", "no pretrained weights 'opnai'"),
        ("local-dir:nowhere", "no open_clip_config.json"),
    ],
)
def test_names_that_are_wrong(name: str, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        load_encoder(name)


def test_weights_that_cannot_be_fetched_name_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Failed to download weights\nfor tag 'openai'")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", unreachable)
    with pytest.raises(EncoderError, match=r"(?s)ViT-B-32/openai could not be loaded.*c3-mini.*local-dir:"):
        load_encoder("ViT-B-32/openai")


def test_a_damaged_local_model(tmp_path: Path) -> None:
    name = local_model(tmp_path / "m")
    (tmp_path / "m" / "open_clip_pytorch_model.bin").write_bytes(b"no weights")
    with pytest.raises(EncoderError, match="could not be loaded"):
        load_encoder(name)


def test_model_names() -> None:
    assert ModelName.parse("ViT-B-32/a/file.pt") == ModelName("ViT-B-32/a/file.pt", "ViT-B-32", "a/file.pt")
    assert ModelName.parse("hf-hub:org/name").has_schema


def test_devices_and_precisions() -> None:
    assert pick("cpu", "fp32") == Compute(torch.device("cpu"), "fp32")
    with pytest.raises(C3Error, match="Unknown precision"):
        pick("cpu", "fp8")
    with pytest.raises(C3Error, match="not computed natively"):
        pick("cpu", "fp16")
    with pytest.raises(C3Error, match="int8 is for encoders alone"):
        pick("cpu", "int8")
    with pytest.raises(C3Error, match="Unknown device 'tpuu'"):
        pick("tpuu")
    if not torch.cuda.is_available():
        with pytest.raises(C3Error, match="--device cpu"):
            pick("cuda")


def test_several_devices() -> None:
    assert devices.pick_devices("cpu, cpu") == ["cpu", "cpu"]
    assert len(devices.pick_devices()) >= 1
    if not torch.cuda.is_available():
        with pytest.raises(C3Error, match="this torch sees no CUDA GPU"):
            devices.pick_devices("cpu,cuda:0")


def test_every_gpu_is_used_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert devices.pick_devices() == ["cuda:0", "cuda:1", "cuda:2"]


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


def test_images_may_be_files_pillow_images_or_arrays(encoder, tmp_path: Path) -> None:
    image = Image.effect_noise((40, 30), 60).convert("RGB")
    image.save(tmp_path / "a.png")
    rows = encoder.encode_images([tmp_path / "a.png", image, np.asarray(image)])
    np.testing.assert_allclose(rows[1:], rows[[0, 0]], atol=1e-6)
    with pytest.raises(EncoderError, match="float64"):
        encoder.encode_images([np.zeros((4, 4, 3))])


def test_an_encoder_is_the_one_asked_for_else_the_recorded_one_else_the_bundled_one(tmp_path: Path) -> None:
    said: list[str] = []

    class Listener(Reporter):
        def message(self, text: str) -> None:
            said.append(text)

    name = local_model(tmp_path / "m")
    recorded = load_encoder(name, random_init=1).identity
    assert resolve_encoder(name, recorded=recorded, reporter=Listener()).identity["random_init"] is None
    assert resolve_encoder(recorded=recorded, reporter=Listener()).identity == recorded
    assert resolve_encoder(recorded=recorded, recorded_precision="bf16").compute.precision == "bf16"
    assert resolve_encoder(recorded=recorded, recorded_precision="bf16", precision="fp32").compute.precision == "fp32"
    assert not said
    assert resolve_encoder(recorded={}, reporter=Listener()).identity.name == "c3-mini"
    assert "bundled model c3-mini" in said[0]
