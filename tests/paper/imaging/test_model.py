from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from c3tools import devices
from c3tools.errors import GeneratorError
from c3tools.paper.imaging.model import SIZES, ImageNetwork, load_size
from c3tools.seeds import keyed_normal
from tests.conftest import unit_rows
from tests.golden import recorded

from .conftest import FP32, micro_network


@pytest.fixture(autouse=True)
def micro() -> None:
    """Keep the sizes as they are."""


@pytest.fixture(scope="module")
def network() -> ImageNetwork:
    return micro_network(6)


def inputs(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    noise = keyed_normal(0, 0, [str(i) for i in range(n)], 192).reshape(n, 3, 8, 8)
    return torch.from_numpy(unit_rows(n, 6)), torch.from_numpy(noise)


def sampled(
    network: ImageNetwork, rows: torch.Tensor, n: int, compute: devices.Compute = FP32
) -> np.ndarray:
    """Images of some of n rows."""
    embeddings, noise = inputs(n)
    return np.stack(list(network.sample(embeddings[rows], noise[rows], compute, steps=3)))


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_sampling_is_eulers_method_on_the_guided_velocity(
    network: ImageNetwork, guidance: float
) -> None:
    """And a withheld embedding is not read: another one gives the same."""
    embeddings, x = inputs(3)
    made = np.stack(list(network.sample(embeddings, x, FP32, steps=5, guidance=guidance)))
    assert list(network.sample(embeddings[:0], x[:0], FP32)) == []
    with torch.inference_mode():
        for step in range(5):
            t = torch.full((3,), 1 - step / 5)
            v_0, v_e = (
                network(x, t, sign * embeddings, torch.tensor([sign < 0] * 3)) for sign in (-1, 1)
            )
            x = x - (v_0 + guidance * (v_e - v_0)) / 5
    expected = ((x.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1)
    assert made.dtype == np.uint8
    assert float(np.abs(made - expected.numpy()).max()) <= 0.51


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_image_does_not_depend_on_its_company(network: ImageNetwork, precision: str) -> None:
    """The same pixels, bit by bit, alone, in a batch, in another place of it, and on another number
    of threads."""
    compute = devices.Compute("cpu", precision)
    n = 19  # one batch and three
    together, order = sampled(network, torch.arange(n), n, compute), torch.arange(n - 1, -1, -1)
    for row in (0, n - 3):
        assert np.array_equal(sampled(network, torch.tensor([row]), n, compute)[0], together[row])
    assert np.array_equal(sampled(network, order, n, compute)[order], together)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert np.array_equal(sampled(network, torch.arange(2), n, compute), together[:2])
    finally:
        torch.set_num_threads(threads)


def test_sizes_are_those_on_record() -> None:
    sizes = {}
    for name, size in SIZES.items():
        with torch.device("meta"):
            sizes[name] = {
                **asdict(size),
                "parameters": sum(p.numel() for p in ImageNetwork(size).parameters()),
            }
    recorded(Path(__file__).parent / "golden/sizes.json", sizes)


def test_wrong_settings_are_refused() -> None:
    for change, named in (
        ("pixels=12", "multiple of 8"),
        ("batch_size=0", "batch_size"),
        ("dropout=nan", "dropout"),
    ):
        with pytest.raises(GeneratorError, match=named):
            load_size("tiny", [change])
