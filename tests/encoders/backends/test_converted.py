"""Models converted for OpenVINO and ONNX Runtime: what they compute, and what happens where they cannot."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from c3tools.encoders.backends import BACKENDS, CONVERTED, ModelCache
from torch import Tensor, nn

from c3tools.assets.paths import PHOTOS
from c3tools.devices import Compute
from c3tools.encoders import Encoder, load_encoder
from c3tools.errors import C3Error, EncoderError, MissingExtraError
from c3tools.reporter import Reporter
from tests.encoders.test_encoder import TEXTS
from tests.encoders.test_loading import local_model

CPU = "cpu"
each_kind = pytest.mark.parametrize("backend", list(CONVERTED))


class Listener(Reporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelCache:
    """An empty cache."""
    monkeypatch.setenv("C3_CACHE", str(tmp_path / "cache"))
    return ModelCache()


@each_kind
def test_the_bundled_model_gives_what_torch_gives(encoder: Encoder, backend: str) -> None:
    converted = load_encoder(backend=backend, precision="fp32")
    assert (converted.backend.name, converted.dim) == (backend, encoder.dim)
    assert converted.identity == encoder.identity
    photos = sorted((PHOTOS / "images").iterdir())[:5]
    np.testing.assert_allclose(converted.encode_images(photos), encoder.encode_images(photos), atol=2e-6)
    texts = [*TEXTS, "a red bus"]
    for size in (1, 4, None):  # a batch of another number and length than those that were traced
        got = converted.encode_texts(texts, batch_size=size)
        np.testing.assert_allclose(got, encoder.encode_texts(texts), atol=1e-5)
    assert converted.encode_images([]).shape == converted.encode_texts([]).shape == (0, encoder.dim)


@each_kind
@pytest.mark.parametrize("changes", [{"no_causal_mask": True}, {"pool_type": "last"}])
def test_towers_that_look_at_padding_are_converted_whole(
    tmp_path: Path, backend: str, changes: dict[str, object]
) -> None:
    name = local_model(tmp_path / "m", **changes)
    torch_, converted = (load_encoder(name, backend=which, precision="fp32") for which in ("torch", backend))
    assert not converted.trims_texts
    np.testing.assert_allclose(converted.encode_texts(TEXTS), torch_.encode_texts(TEXTS), atol=1e-5)


@each_kind
def test_the_number_of_threads_and_what_ran_before_change_no_bit(tmp_path: Path, backend: str) -> None:
    one = load_encoder(local_model(tmp_path / "m"), backend=backend, precision="fp32")
    folder = next(m.path for m in ModelCache().models() if m.made_from.get("backend") == backend and is_of(m, one))
    many = CONVERTED[backend](folder, Compute(CPU, "fp32"), threads=3)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), dtype=np.uint8)
    batches = [(number, pixels[number : number + 1 + number % 5]) for number in range(30)]
    expected = {label: features.tobytes() for label, features in one.backend.run("image", batches)}
    backwards = {label: features.tobytes() for label, features in many.run("image", reversed(batches))}
    assert expected == backwards
    assert list(many.run("image", [])) == []


def is_of(model: Any, encoder: Encoder) -> bool:
    return bool(model.made_from.get("weights_sha256") == encoder.identity["weights_sha256"])


def test_bf16_of_openvino_is_near_fp32(tmp_path: Path) -> None:
    if "bf16" not in CONVERTED["openvino"].precisions():
        pytest.skip("this CPU has no bf16")
    name = local_model(tmp_path / "m")
    plain, rounded = (load_encoder(name, backend="openvino", precision=p) for p in ("fp32", "bf16"))
    assert rounded.compute.precision == "bf16"
    got, expected = rounded.encode_texts(TEXTS), plain.encode_texts(TEXTS)
    assert not np.array_equal(got, expected)
    assert (got * expected).sum(axis=1).min() > 0.99
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)


@each_kind
def test_a_backend_that_is_not_installed_names_its_extra(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONVERTED[backend], "packages", ("a_package_that_nobody_has",))
    with pytest.raises(MissingExtraError, match=rf'(?s)a_package_that_nobody_has.*pip install "c3tools\[{backend}\]"'):
        load_encoder(backend=backend)


@each_kind
def test_what_a_converted_model_cannot_do_is_said(tmp_path: Path, backend: str) -> None:
    name = local_model(tmp_path / "m")
    if backend == "onnx":
        with pytest.raises(EncoderError, match="onnx does not compute in bf16"):
            load_encoder(name, backend=backend, precision="bf16")
    with pytest.raises(EncoderError, match="--compile is for the backend torch"):
        load_encoder(name, backend=backend, compiled=True)
    with pytest.raises(C3Error, match=r"(?s)There is no backend 'tensorrt'.*auto, torch, openvino, onnx"):
        load_encoder(name, backend="tensorrt")


def broken(cls: Any, tower: nn.Module, example: Tensor, folder: Path, modality: str) -> None:
    raise RuntimeError("No conversion rule for aten::secret")


@each_kind
def test_a_model_that_does_not_convert(
    tmp_path: Path, backend: str, cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, listener = local_model(tmp_path / "m"), Listener()
    monkeypatch.setattr(CONVERTED[backend], "_convert", classmethod(broken))
    with pytest.raises(EncoderError, match=rf"(?s)cannot be converted to {backend} .*aten::secret.*--backend torch"):
        load_encoder(name, backend=backend)
    for other in CONVERTED:
        monkeypatch.setattr(CONVERTED[other], "_convert", classmethod(broken))
    chosen = load_encoder(name, precision="fp32", reporter=listener)
    assert chosen.backend.name == "torch"
    assert sum("aten::secret" in text for text in listener.said) == len(CONVERTED)
    assert cache.models() == []


@each_kind
def test_a_conversion_that_changes_the_embeddings_is_refused(
    tmp_path: Path, backend: str, cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reversed(nn.Module):
        def __init__(self, tower: nn.Module) -> None:
            super().__init__()
            self.tower = tower

        def forward(self, x: Tensor) -> Tensor:
            return torch.flip(self.tower(x), dims=(1,))

    right = CONVERTED[backend]._convert

    def wrong(cls: Any, tower: nn.Module, example: Tensor, folder: Path, modality: Any) -> None:
        right(Reversed(tower), example, folder, modality)

    monkeypatch.setattr(CONVERTED[backend], "_convert", classmethod(wrong))
    with pytest.raises(EncoderError, match=r"the cosine with its embeddings falls to"):
        load_encoder(local_model(tmp_path / "m"), backend=backend)
    assert cache.models() == []


@each_kind
def test_changed_weights_under_the_same_name_are_converted_anew(
    tmp_path: Path, backend: str, cache: ModelCache
) -> None:
    name = local_model(tmp_path / "m")
    before = load_encoder(name, backend=backend, precision="fp32").encode_texts(TEXTS)
    weights = tmp_path / "m" / "open_clip_pytorch_model.bin"
    state = torch.load(weights, weights_only=True)
    state["text_projection"] = state["text_projection"].flip(0)
    torch.save(state, weights)
    after = load_encoder(name, backend=backend, precision="fp32").encode_texts(TEXTS)
    expected = load_encoder(name, backend="torch", precision="fp32").encode_texts(TEXTS)
    np.testing.assert_allclose(after, expected, atol=1e-5)
    assert (before * after).sum(axis=1).max() < 0.9
    assert len(cache.models()) == 2


@each_kind
def test_a_damaged_model_is_made_again(tmp_path: Path, backend: str, cache: ModelCache) -> None:
    name = local_model(tmp_path / "m")
    expected = load_encoder(name, backend=backend, precision="fp32").encode_texts(TEXTS)
    largest = max(cache.models()[0].path.iterdir(), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 255
    largest.write_bytes(content)
    listener = Listener()
    again = load_encoder(name, backend=backend, precision="fp32", reporter=listener)
    np.testing.assert_array_equal(again.encode_texts(TEXTS), expected)
    assert [text for text in listener.said if "is damaged. It is made again" in text]
    listener.said.clear()
    load_encoder(name, backend=backend, precision="fp32", reporter=listener)
    assert listener.said == []


def test_the_fastest_that_agrees_is_taken_and_noted(
    tmp_path: Path, cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    from c3tools.encoders import selection

    measured: list[tuple[str, str]] = []

    def measure(self: Any, backend: str, precision: str, device: str) -> dict[str, Any]:
        measured.append((backend, precision))
        found = {"backend": backend, "precision": precision}
        if backend == "onnx":
            return {**found, "error": "does not convert"}
        speed, cosine = {("torch", "fp32"): (1, 1.0), ("openvino", "fp32"): (3, 0.9995)}.get(
            (backend, precision), (9, 0.9985)
        )
        return {**found, "images": speed, "texts": speed, "cosine": cosine}

    monkeypatch.setattr(selection.EncoderFactory, "_measure", measure)
    name = local_model(tmp_path / "m")
    for _ in range(2):
        chosen = load_encoder(name)
        assert (chosen.backend.name, chosen.compute.precision) == ("openvino", "fp32")
    assert {backend for backend, _ in measured} == set(BACKENDS)
    assert len(measured) == len(set(measured))  # once each
    monkeypatch.setattr(platform, "node", lambda: "another-machine")
    load_encoder(name)
    assert len(measured) == 2 * len(set(measured))


def test_a_precision_that_was_asked_for_is_kept_by_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from c3tools.encoders import selection

    def measure(self: Any, backend: str, precision: str, device: str) -> dict[str, Any]:
        assert precision == "bf16"
        return {"backend": backend, "precision": precision, "images": 1, "texts": 1, "cosine": 0.9}

    monkeypatch.setattr(selection.EncoderFactory, "_measure", measure)
    chosen = load_encoder(local_model(tmp_path / "m"), precision="bf16")
    assert (chosen.backend.name, chosen.compute.precision) == ("torch", "bf16")


def test_where_nothing_else_is_installed_torch_is_taken_without_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener()
    for kind in CONVERTED.values():
        monkeypatch.setattr(kind, "packages", ("a_package_that_nobody_has",))
    assert load_encoder(local_model(tmp_path / "m"), reporter=listener).backend.name == "torch"
    assert listener.said == []


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


def test_a_signal_after_encoders_were_dropped_is_no_crash() -> None:
    done = subprocess.run([sys.executable, "-c", SIGNAL_AFTER_TWO], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "told\n"), done.stderr


FIRST_IN_MANY_THREADS = """
import os, sys, threading
from c3tools.encoders.backends.openvino import _core
_core()
import openvino
sys.setswitchinterval(1e-7)
barrier = threading.Barrier(8)
def first():
    barrier.wait()
    openvino.Type.u8.to_dtype()  # as every inference does
threads = [threading.Thread(target=first, daemon=True) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join(60 / len(threads)) for thread in threads]
os._exit(any(thread.is_alive() for thread in threads))
"""


def test_threads_that_are_the_first_to_use_openvino_do_not_wait_for_each_other_for_ever() -> None:
    # without tables of types that are filled beforehand, about two of five such processes hang
    runs = [subprocess.Popen([sys.executable, "-c", FIRST_IN_MANY_THREADS]) for _ in range(8)]
    try:
        assert [run.wait(100) for run in runs] == [0] * 8
    finally:
        for run in runs:
            run.kill()
            run.wait()
