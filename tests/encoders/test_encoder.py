"""Embeddings of both backends against open_clip itself; batches, precisions, and what cannot be
run."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor

from c3tools import devices
from c3tools.arrays import Matrix
from c3tools.assets.paths import C3_MINI, PHOTOS
from c3tools.devices import Compute, has_int8, pick
from c3tools.encoders import (
    Encoder,
    ImagePreprocessor,
    load_encoder,
    openvino_backend,
    openvino_int8,
)
from c3tools.encoders import backend as backend_base
from c3tools.encoders.encoder import ModelFacts
from c3tools.encoders.openvino_backend import OpenVINOBackend
from c3tools.encoders.torch_backend import TorchBackend
from c3tools.errors import C3Error, EncoderError, MissingExtraError
from c3tools.io.images import open_image
from tests.conftest import Messages
from tests.connect.photos import save_tiny_clip

TEXTS = ["a dog", "two people ride bicycles along a river", "word " * 200, "", "snow on a hill"]
FILES = sorted((PHOTOS / "images").iterdir())


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model."""
    return save_tiny_clip(tmp_path_factory.mktemp("tiny") / "m", width=32, context_length=16)


def by_open_clip(name: str, texts: list[str], files: list[Path] = FILES[:4]) -> list[Any]:
    """Embeddings of a model as open_clip itself runs it: padded texts, its own preprocessing."""
    model, _, transform = open_clip.create_model_and_transforms(name)
    pixels = torch.stack([transform(open_image(file)[0]) for file in files])
    with torch.inference_mode():
        tokens = open_clip.get_tokenizer(name)(texts)
        return [
            model.eval().encode_text(tokens, normalize=True),
            model.encode_image(pixels, normalize=True),
        ]


def test_the_bundled_model_is_embedded_as_open_clip_does(each_encoder: Encoder) -> None:
    texts, images = by_open_clip(f"local-dir:{C3_MINI}", TEXTS)
    assert (each_encoder.trims_texts, each_encoder.normalised, each_encoder.sampling_rate) == (
        True,
        True,
        0,
    )
    np.testing.assert_allclose(each_encoder.encode_images(FILES[:4]), images, atol=2e-6)
    for size in (1, 2, None):
        np.testing.assert_allclose(
            each_encoder.encode_texts(TEXTS, batch_size=size), texts, atol=1e-5
        )
    assert each_encoder.encode_images([]).shape == each_encoder.encode_texts([]).shape == (0, 256)
    ((label, nothing),) = each_encoder.encode_batches("image", [("none of these is an image", [])])
    assert (label, nothing.shape) == ("none of these is an image", (0, 256))


def test_exact_decoding_gives_the_pixels_of_open_clip(name: str, tmp_path: Path) -> None:
    file = tmp_path / "large.jpg"
    Image.effect_noise((800, 600), 60).convert("RGB").save(file, quality=80)
    _, _, transform = open_clip.create_model_and_transforms(name)
    of_open_clip = transform(Image.open(file)).permute(1, 2, 0).numpy()

    preprocess = load_encoder(name).preprocess
    exact, width, height = replace(preprocess, exact=True).load(file)
    scaled, *_ = preprocess.load(file)

    config = preprocess.config
    expected = (of_open_clip * config["std"] + config["mean"]) * 255
    assert (width, height) == (800, 600)
    np.testing.assert_array_equal(exact, expected.round())
    assert not np.array_equal(scaled, exact)


@pytest.mark.parametrize(
    "changes",
    [
        {"no_causal_mask": True},
        {"pool_type": "last"},
        {"pool_type": "first"},
        {"pool_type": "eos", "eos_id": 320},
    ],
)
def test_towers_that_look_at_padding_are_run_whole(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    name, ends = save_tiny_clip(tmp_path / "m", **changes), "eos_id" in changes  # 320 is "a"
    texts = ["a dog", "two of a kind"] if ends else TEXTS
    expected = by_open_clip(name, texts)[0]
    for backend in ("torch", "openvino"):
        encoder = load_encoder(name, backend=backend, precision="fp32")
        assert (encoder.backend.name, encoder.trims_texts) == (backend, ends)
        np.testing.assert_allclose(encoder.encode_texts(texts), expected, atol=1e-5)


def test_images_may_be_files_pillow_images_or_arrays(encoder: Encoder, tmp_path: Path) -> None:
    image = Image.effect_noise((40, 30), 60).convert("RGB")
    image.save(tmp_path / "a.png")
    rows = encoder.encode_images([tmp_path / "a.png", image, np.asarray(image)])
    np.testing.assert_allclose(rows[1:], rows[[0, 0]], atol=1e-6)
    (tmp_path / "x.jpg").write_text("no")
    for wrong, named in ((np.zeros((4, 4, 3)), "float64"), (tmp_path / "x.jpg", "x.jpg")):
        with pytest.raises(EncoderError, match=named):
            encoder.encode_images([wrong])  # type: ignore[list-item]


@pytest.mark.parametrize("method", ["encode_texts", "encode_queries"])
def test_anything_but_texts_is_refused(encoder: Encoder, method: str) -> None:
    with pytest.raises(EncoderError, match="item 1 is of type"):
        getattr(encoder, method)(["a dog", None])


def test_one_text_or_image_is_a_list_of_one(encoder: Encoder, photos: Path) -> None:
    np.testing.assert_array_equal(encoder.encode_texts("a dog"), encoder.encode_texts(["a dog"]))
    photo = next(photos.glob("*.jpg"))
    expected = encoder.encode_images([photo])
    assert expected.shape == (1, encoder.dim)
    for image in (photo, str(photo)):
        np.testing.assert_array_equal(encoder.encode_images(image), expected)


def test_long_texts_are_counted_and_come_in_smaller_batches(encoder: Encoder) -> None:
    texts = ["dog " * (1 + number % 90) for number in range(300)]
    tokens = encoder.tokenise(texts)  # 77 with the start and the end
    assert encoder.truncated(texts, tokens).tolist() == [number % 90 > 74 for number in range(300)]
    batches = [batch for _, batch in encoder.token_batches(tokens, None)]
    assert sum(map(len, batches)) == 300
    assert all(batch.size <= encoder.batch_size("text") * 16 for batch in batches)


def test_the_number_of_threads_and_what_ran_before_change_no_bit(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, results = np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), np.uint8), []
    batches = [pixels[number : number + 1 + number % 5] for number in range(30)]
    for threads in (1, 3):
        monkeypatch.setattr(openvino_backend, "threads", lambda threads=threads: threads)
        backend = load_encoder(name, backend="openvino", precision="fp32").backend
        assert backend.ahead == threads
        started = [backend.submit("image", batch) for batch in batches[:: 2 - threads]]
        results.append([one().tobytes() for one in started][:: 2 - threads])
    assert results[0] == results[1]


def test_batches_follow_from_the_device_and_the_size_of_an_image() -> None:
    cases = (
        ("cpu", 160, 32, 128),
        ("cpu", 352, 8, 128),
        ("cpu", 4000, 1, 128),
        ("cuda:0", 384, 64, 1024),
    )
    for device, side, *expected in cases:
        backend: Any = SimpleNamespace(compute=Compute(device, "fp32"))
        preprocess = ImagePreprocessor((), {"size": side})
        encoder = Encoder(backend, ModelFacts(None, preprocess, {}, False, dim=2))
        assert [encoder.batch_size("image"), encoder.batch_size("text")] == expected


class Limited(torch.nn.Linear):
    """A model whose memory holds a few images, by default two."""

    def __init__(self, error: Exception | None, most: int = 2) -> None:
        super().__init__(1, 1)
        self.error, self.ran = error, list[int]()
        self.most = most

    def encode_image(self, pixels: Tensor) -> Tensor:
        self.ran.append(len(pixels))
        if len(pixels) > self.most:
            if self.error:
                raise self.error
            torch.empty(2**60, dtype=torch.uint8)
        return pixels.flatten(1)


@pytest.mark.parametrize(
    "text", [None, "CUDA out of memory", "MPS backend out of memory", "shapes"]
)
def test_a_batch_that_does_not_fit_into_memory_is_run_in_halves(text: str | None) -> None:
    model = Limited(RuntimeError(text) if text else None)
    preprocess = ImagePreprocessor((), {"size": 1, "mean": [0.0] * 3, "std": [1.0] * 3})
    backend, batch = (
        TorchBackend(model, preprocess, Compute("cpu", "fp32"), False),
        np.full((7, 1, 1, 3), 9, np.uint8),
    )
    if text == "shapes":
        with pytest.raises(RuntimeError, match="shapes"):
            backend.submit("image", batch)
        return
    for expected in ([7, 3, *[1] * 7], [1] * 7):  # the batches that follow, too
        model.ran.clear()
        np.testing.assert_allclose(
            backend.submit("image", batch)(), np.full((7, 3), 3**-0.5), rtol=1e-6
        )
        assert model.ran == expected


def test_a_batch_is_halved_down_to_one_image() -> None:
    model = Limited(None, most=1)
    preprocess = ImagePreprocessor((), {"size": 1, "mean": [0.0] * 3, "std": [1.0] * 3})
    backend = TorchBackend(model, preprocess, Compute("cpu", "fp32"), False)
    assert len(backend.submit("image", np.full((4, 1, 1, 3), 9, np.uint8))()) == 4
    assert model.ran == [4, 2, 1, 1, 1, 1]


def assert_close_but_rounded(got: Matrix, exact: Matrix, cosine: float) -> None:
    assert not np.array_equal(got, exact)
    assert (got * exact).sum(axis=1).min() > cosine
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_auto_is_bf16_only_where_the_cpu_is_faster_in_it_and_the_model_bears_it(
    name: str, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    if backend == "openvino" and "bf16" not in OpenVINOBackend.precisions():
        pytest.skip("this CPU has no bf16")
    monkeypatch.setattr(devices, "_cpu_has_fast_bf16", lambda: True)
    for agreement, expected in ((0.9, "bf16"), (0.99999, "fp32")):
        monkeypatch.setattr(backend_base, "AGREEMENT", agreement)
        rounded = load_encoder(name, backend=backend)
        assert (rounded.backend.name, rounded.compute.precision) == (backend, expected)
    kept = rounded.encode_texts(TEXTS)
    # as recorded: it is not decided again
    rounded = load_encoder(name, backend=backend, precision="bf16")
    exact = load_encoder(name, backend=backend, precision="fp32")
    np.testing.assert_array_equal(kept, exact.encode_texts(TEXTS))
    assert_close_but_rounded(rounded.encode_texts(TEXTS), kept, 0.99)
    monkeypatch.setattr(devices, "_cpu_has_fast_bf16", lambda: False)
    assert load_encoder(name, backend=backend).compute.precision == pick("cpu").precision == "fp32"


def test_auto_is_openvino_where_it_is_installed_and_runs_the_model_else_torch(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Messages()
    assert load_encoder(name, reporter=listener).backend.name == "openvino"
    with monkeypatch.context() as patch:
        patch.setattr(OpenVINOBackend, "is_installed", lambda: False)
        assert load_encoder(name, reporter=listener).backend.name == "torch"
        with pytest.raises(MissingExtraError, match=r'install "openvino>='):
            load_encoder(name, backend="openvino")
    assert not listener.texts
    exact = load_encoder(name, backend="torch", precision="fp32").encode_texts(TEXTS)

    def broken(model: object) -> None:
        raise RuntimeError("No conversion rule for aten::secret")

    monkeypatch.setattr("c3tools.encoders.towers.plain_attention", broken)
    with pytest.raises(EncoderError, match=r"(?s)aten::secret.*--backend torch"):
        load_encoder(name, backend="openvino")
    chosen = load_encoder(name, precision="fp32", reporter=listener)
    assert chosen.backend.name == "torch"
    assert "aten::secret" in listener.texts[0]
    np.testing.assert_array_equal(chosen.encode_texts(TEXTS), exact)


def test_openvino_refuses_what_it_cannot_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = OpenVINOBackend._compute
    for wrong in ("image", "text"):

        def broken(own: OpenVINOBackend, modality: str, *arguments: Any, wrong: str = wrong) -> Any:
            return compute(own, modality, *arguments) * (np.nan if modality == wrong else 1)  # type: ignore[arg-type]

        monkeypatch.setattr(OpenVINOBackend, "_compute", broken)
        with pytest.raises(C3Error, match="falls to nan"):
            load_encoder(name, backend="openvino")
    monkeypatch.setattr(
        OpenVINOBackend, "_compute", lambda *arguments: np.flip(compute(*arguments), axis=1)
    )
    cases: Any = (
        ({"precision": "fp16"}, "fp16"),
        ({"device": "meta"}, "meta"),
        ({}, "cosine with torch's embeddings"),
    )
    for options, named in cases:
        with pytest.raises(C3Error, match=named):
            load_encoder(name, backend="openvino", **options)


@pytest.mark.skipif(not has_int8(), reason="this CPU has no avx512_vnni")
def test_a_model_in_int8_agrees_with_fp32(
    name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nncf", reason="the extra int8 is not installed")
    plain = load_encoder(name, backend="openvino", precision="fp32")
    rounded, again = (load_encoder(name, precision="int8") for _ in range(2))
    assert (rounded.backend.name, rounded.compute.precision) == ("openvino", "int8")
    assert capfd.readouterr().out == ""  # NNCF's own bars would end up in --json
    # not calibrated on
    for method, inputs in (("encode_texts", TEXTS[:3]), ("encode_images", FILES[70:79])):
        got, same, expected = (getattr(one, method)(inputs) for one in (rounded, again, plain))
        np.testing.assert_array_equal(got, same)
        assert_close_but_rounded(got, expected, 0.98)
    with pytest.raises(EncoderError, match="--backend openvino"):
        load_encoder(name, precision="int8", backend="torch")
    monkeypatch.setattr(openvino_int8, "_LEAST_COSINE", 1.1)
    with pytest.raises(EncoderError, match=r"(?s)image.*1\.1.*--precision auto"):
        load_encoder(name, precision="int8")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda package: None if package == "nncf" else find(package)
    )
    with pytest.raises(MissingExtraError, match=r'install "nncf>='):
        load_encoder(name, precision="int8")


SIGNAL_AFTER_TWO = """
import faulthandler, gc, os, signal
from c3tools.encoders import load_encoder
faulthandler.enable()  # has signals handled on a stack of their own, as pytest does
first = load_encoder(backend="openvino", precision="fp32")
second = load_encoder(backend="openvino", precision="fp32")
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGINT, lambda *_: print("told"))
os.kill(os.getpid(), signal.SIGINT)
"""
FIRST_IN_MANY_THREADS = """
import os, sys, threading
from c3tools.encoders.openvino_backend import OpenVINOBackend
OpenVINOBackend.precisions()
import openvino
sys.setswitchinterval(1e-7)
barrier = threading.Barrier(8)
def first():
    barrier.wait()
    openvino.Type.u8.to_dtype()  # as every inference does
threads = [threading.Thread(target=first, daemon=True) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join(30 / len(threads)) for thread in threads]
print("told")
os._exit(any(thread.is_alive() for thread in threads))
"""


@pytest.mark.parametrize(
    "code", [SIGNAL_AFTER_TWO, *[FIRST_IN_MANY_THREADS] * 3], ids=["signal", *"123"]
)
def test_openvino_neither_crashes_at_a_signal_nor_hangs_in_threads(code: str) -> None:
    # without tables of types that are filled beforehand, about two of five of the second kind hang
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
