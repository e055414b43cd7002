from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from c3tools.devices import Compute, has_int8, pick
from c3tools.encoders import load_encoder, loading
from c3tools.encoders.inference import ON_CPU, Int8Linear, Int8SelfAttention, find_batch_size, largest_batch, use_int8
from c3tools.errors import C3Error, EncoderError
from tests.encoders.test_encoder import TEXTS
from tests.encoders.test_loading import local_model

INT8 = Compute(torch.device("cpu"), "int8")


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
        got, _ = Int8SelfAttention(attention)(x, x, x, attn_mask=mask)
    cosine = nn.functional.cosine_similarity(got.flatten(), expected.flatten(), dim=0)
    assert cosine > 0.999


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
    monkeypatch.setattr(loading, "pick", lambda *arguments, **options: INT8)
    monkeypatch.setattr(loading, "agreement", lambda a, b: 0.9)
    with pytest.raises(EncoderError, match=r"(?s)loses too much in int8.*0\.9000.*--precision auto"):
        load_encoder(name, precision="int8")


def test_a_cpu_without_the_instructions_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(C3Error, match="avx512_vnni"):
        pick("cpu", "int8", encoder=True)


@given(st.integers(1, 2**34), st.integers(0, 2**40), st.integers(1, 4096))
def test_the_batch_is_the_largest_power_of_two_that_fits(per_input: int, available: int, largest: int) -> None:
    batch = largest_batch(per_input, available, largest)
    assert batch.bit_count() == 1
    assert batch <= largest
    assert batch == 1 or batch * per_input <= available
    assert 2 * batch > largest or 2 * batch * per_input > available


def test_a_cpu_is_not_probed() -> None:
    def never(modality: str, n: int) -> None:
        raise AssertionError("probed")

    assert find_batch_size("image", torch.device("cpu"), never) == ON_CPU["image"]
    assert find_batch_size("text", torch.device("cpu"), never, 352 * 352) == ON_CPU["text"]
    assert find_batch_size("image", torch.device("cpu"), never, 160 * 160) == 32
    assert find_batch_size("image", torch.device("cpu"), never, 352 * 352) == 8
    assert find_batch_size("image", torch.device("cpu"), never, 4000 * 4000) == 1


@pytest.mark.parametrize(("per_image", "expected"), [(2**20, 256), (2**26, 128), (2**34, 1)])
def test_on_a_gpu_memory_decides(monkeypatch: pytest.MonkeyPatch, per_image: int, expected: int) -> None:
    """The bookkeeping alone: a card of 16 GiB whose runs take ``per_image`` bytes an image and 1 GiB of weights."""
    ran: list[int] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: ran.clear())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**30 + ran[0] * per_image)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=2**34))
    size = find_batch_size("image", torch.device("cuda:0"), lambda modality, n: ran.append(n))
    assert size == expected
