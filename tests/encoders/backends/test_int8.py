from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from c3tools.devices import Compute, has_int8, pick
from c3tools.encoders import load_encoder, selection
from c3tools.encoders.backends.int8 import Int8Linear, use_int8
from c3tools.encoders.backends.towers import SelfAttention, use_plain_attention
from c3tools.errors import C3Error, EncoderError
from tests.encoders.test_encoder import TEXTS
from tests.encoders.test_loading import local_model

INT8 = Compute("cpu", "int8")


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 30), st.booleans(), st.integers(0, 1000))
def test_a_linear_layer_against_the_formula_in_float64(n: int, width: int, out: int, biased: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(n, width)).astype(np.float32), rng.normal(size=(out, width)).astype(np.float32)
    b = rng.normal(size=out).astype(np.float32) if biased else None
    layer = Int8Linear(torch.from_numpy(w), None if b is None else torch.from_numpy(b))
    x_step, w_step = np.abs(x).max(axis=1, keepdims=True) / 127, np.abs(w).max(axis=1) / 127
    exact = np.rint(x / x_step).astype(np.float64) @ np.rint(w / w_step[:, None]).astype(np.float64).T
    expected = exact * x_step * w_step + (0 if b is None else b)
    got = layer(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    # half a step of either factor for every product
    bound = (np.abs(x).sum(1)[:, None] * w_step + x_step * np.abs(w).sum(1) + width * x_step * w_step / 2) / 2
    assert (np.abs(got - (x @ w.T + (0 if b is None else b))) <= bound + 1e-4).all()


def test_rows_of_zeros_and_many_rows() -> None:
    layer = Int8Linear(torch.ones(4, 3), torch.arange(4.0))
    x = torch.zeros(2, 500, 3)
    torch.testing.assert_close(layer(x), torch.arange(4.0).expand(2, 500, 4))


def test_a_row_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    layer = Int8Linear(torch.randn(16, 24), torch.randn(16))
    x = torch.randn(900, 24) * torch.logspace(-3, 3, 900)[:, None]
    assert torch.equal(layer(x)[417], layer(x[417:418])[0])


@pytest.mark.parametrize("causal", [False, True])
def test_attention_agrees_with_that_of_torch(causal: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    x = torch.randn(3, 7, 32)
    mask = torch.full((7, 7), -torch.inf).triu(1) if causal else None
    with torch.inference_mode():
        expected, _ = attention(x, x, x, need_weights=False, attn_mask=mask)
        got, _ = SelfAttention(attention, Int8Linear)(x, x, x, attn_mask=mask)
    cosine = nn.functional.cosine_similarity(got.flatten(), expected.flatten(), dim=0)
    assert cosine > 0.999
    network = nn.ModuleList([attention])
    use_plain_attention(network)
    assert type(network[0]) is SelfAttention
    with torch.inference_mode():
        torch.testing.assert_close(network[0](x, x, x, attn_mask=mask)[0], expected)


def test_layers_are_replaced_and_others_are_left() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Sequential(nn.Linear(4, 2), nn.GELU()))
    assert use_int8(network) == 2
    assert [type(module).__name__ for module in network] == ["Int8Linear", "LayerNorm", "Sequential"]
    assert use_int8(network) == 0


def test_an_encoder_in_int8_agrees_with_fp32(tmp_path: Path) -> None:
    if not has_int8():
        pytest.skip("this CPU has no avx512_vnni")
    name = local_model(tmp_path / "m")
    plain, rounded = load_encoder(name, precision="fp32"), load_encoder(name, precision="int8")
    assert rounded.compute == INT8
    assert rounded.trims_texts
    assert ((plain.encode_texts(TEXTS) * rounded.encode_texts(TEXTS)).sum(1) > 0.99).all()
    alone = np.concatenate([rounded.encode_texts([text]) for text in TEXTS])
    np.testing.assert_allclose(rounded.encode_texts(TEXTS), alone, atol=2e-6)


def test_a_model_that_does_not_bear_int8_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = local_model(tmp_path / "m")
    monkeypatch.setattr(selection, "pick", lambda *arguments, **options: INT8)
    monkeypatch.setattr(selection, "agreement", lambda a, b: 0.9)
    with pytest.raises(EncoderError, match=r"(?s)loses too much in int8.*0\.9000.*--precision auto"):
        load_encoder(name, precision="int8")


def test_a_cpu_without_the_instructions_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(C3Error, match="avx512_vnni"):
        pick("cpu", "int8", encoder=True)
