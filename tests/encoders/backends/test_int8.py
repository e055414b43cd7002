from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from c3tools.encoders.backends import ModelCache, int8
from c3tools.encoders.backends.towers import SelfAttention, use_plain_attention
from c3tools.encoders.calibration import CALIBRATION_INPUTS
from PIL import Image
from torch import nn

from c3tools.assets.paths import PHOTOS
from c3tools.devices import has_int8
from c3tools.encoders import Calibration, Encoder, load_encoder, selection
from c3tools.errors import C3Error, EncoderError, MissingExtraError
from tests.encoders.backends.test_converted import Listener
from tests.encoders.test_encoder import TEXTS
from tests.encoders.test_loading import local_model

needs_int8 = pytest.mark.skipif(not has_int8(), reason="this CPU has no avx512_vnni")


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> str:
    return local_model(tmp_path_factory.mktemp("int8") / "m")


@pytest.mark.parametrize("causal", [False, True])
def test_attention_agrees_with_that_of_torch(causal: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    x = torch.randn(3, 7, 32)
    mask = torch.full((7, 7), -torch.inf).triu(1) if causal else None
    with torch.inference_mode():
        expected, _ = attention(x, x, x, need_weights=False, attn_mask=mask)
    network = nn.ModuleList([attention])
    use_plain_attention(network)
    assert type(network[0]) is SelfAttention
    with torch.inference_mode():
        torch.testing.assert_close(network[0](x, x, x, attn_mask=mask)[0], expected)


@needs_int8
def test_a_calibrated_model_agrees_with_fp32_and_is_made_once(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    listener = Listener()
    plain = load_encoder(name, backend="openvino", precision="fp32")
    rounded = load_encoder(name, precision="int8", reporter=listener)
    assert (rounded.backend.name, rounded.compute.precision) == ("openvino", "int8")
    assert [text for text in listener.said if text.startswith("Calibrating")]
    assert capfd.readouterr().out == ""  # NNCF's own bars would end up in --json
    photos = sorted((PHOTOS / "images").iterdir())[70:79]  # not calibrated on
    for got, expected in (
        (rounded.encode_texts(TEXTS[:3]), plain.encode_texts(TEXTS[:3])),
        (rounded.encode_images(photos), plain.encode_images(photos)),
    ):
        assert not np.array_equal(got, expected)
        assert (got * expected).sum(axis=1).min() > 0.98
        np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
    sizes = [sum(f.stat().st_size for f in e.backend.folder.glob("*.bin")) for e in (plain, rounded)]  # type: ignore[attr-defined]
    assert sizes[1] < 0.7 * sizes[0]
    listener.said.clear()
    again = load_encoder(name, precision="int8", reporter=listener)
    assert listener.said == []
    np.testing.assert_array_equal(again.encode_texts(TEXTS), rounded.encode_texts(TEXTS))


@needs_int8
def test_the_first_inputs_of_the_user_come_first(name: str, quantized: list[Any]) -> None:
    red = Image.new("RGB", (40, 30), (255, 0, 0))
    load_encoder(name, precision="int8", calibration=Calibration(["no such file.jpg", red], ["a red thing"]))
    (inputs,) = quantized
    assert [len(inputs[modality]) for modality in ("image", "text")] == [CALIBRATION_INPUTS] * 2
    assert (inputs["image"][0] == np.array([255, 0, 0])).all()
    assert len({batch.shape[1] for batch in inputs["text"]}) > 1  # texts without their padding
    load_encoder(name, precision="int8", calibration=Calibration([red], ["a red thing"]))
    assert len(quantized) == 1  # the same inputs
    load_encoder(name, precision="int8", calibration=Calibration([red], ["a blue thing"]))
    many = Calibration([red] * 100, (f"text {number}" for number in range(100)))
    load_encoder(name, precision="int8", calibration=many)
    assert len(quantized) == 3
    assert all((batch == np.array([255, 0, 0])).all() for batch in quantized[2]["image"])


@needs_int8
def test_a_model_that_does_not_bear_int8_is_refused(
    name: str, quantized: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "smallest_cosine", lambda modality, *_: 0.9 if modality == "image" else 1.0)
    before = len(ModelCache().models())
    with pytest.raises(
        EncoderError, match=r"(?s)int8 changes the embeddings .*too much.*image.*0\.9000.*--precision auto"
    ):
        load_encoder(name, precision="int8", calibration=Calibration(texts=["refused"]))
    assert len(ModelCache().models()) == before


@needs_int8
def test_a_kept_model_is_taken_wherever_it_is(
    name: str, quantized: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_encoder(name, precision="int8", calibration=Calibration(texts=["kept"]))
    kept = tmp_path / "kept"
    shutil.copytree(first.backend.folder, kept)  # type: ignore[attr-defined]
    monkeypatch.setenv("C3_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(int8, "require_nncf", pytest.fail)

    def again() -> Encoder:
        return load_encoder(name, precision="int8", calibration=Calibration(kept=kept))

    np.testing.assert_array_equal(again().encode_texts(TEXTS), first.encode_texts(TEXTS))
    assert len(quantized) == 1
    shutil.rmtree(tmp_path / "empty")
    content = bytearray((kept / "text.bin").read_bytes())
    content[len(content) // 2] ^= 255
    (kept / "text.bin").write_bytes(content)
    with pytest.raises(EncoderError, match=r"(?s)is damaged \(text\.bin\).*another --store"):
        again()
    shutil.rmtree(kept)
    with pytest.raises(EncoderError, match=r"(?s)is missing.*another --store"):
        again()


def test_what_int8_needs_is_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if has_int8():
        for backend in ("torch", "onnx"):
            with pytest.raises(EncoderError, match=rf"(?s){backend} does not compute in int8.*--backend openvino"):
                load_encoder(name, backend=backend, precision="int8")
        with pytest.raises(EncoderError, match="--compile is for the backend torch"):
            load_encoder(name, precision="int8", compiled=True)
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == "nncf" else find(package))
        with pytest.raises(MissingExtraError, match=r'(?s)nncf.*pip install "c3tools\[int8\]"'):
            load_encoder(name, precision="int8")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False, raising=False)
    with pytest.raises(C3Error, match=r"(?s)avx512_vnni.*--precision auto"):
        load_encoder(name, precision="int8")
