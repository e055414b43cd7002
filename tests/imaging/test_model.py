from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch.nn import functional as F

from c3tools import devices
from c3tools.errors import GeneratorError
from c3tools.imaging import SIZES, ImageNetwork, NetworkConfig, load_size, sample
from c3tools.imaging.model import sampling_batch
from c3tools.seeds import keyed_normal

from .worlds import FP32


@pytest.fixture(autouse=True)
def micro() -> None:
    """Keep the sizes as they are."""


MICRO = NetworkConfig(8, 2, (16, 16), (False, True), dim=6)


@pytest.fixture(scope="module")
def network() -> ImageNetwork:
    torch.manual_seed(0)
    network = ImageNetwork(MICRO).eval()
    torch.nn.init.normal_(network.unet.conv_out.weight, std=0.3)
    return network


def inputs(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    embeddings = F.normalize(torch.randn(n, 6, generator=torch.Generator().manual_seed(1)), dim=1)
    return embeddings, torch.from_numpy(keyed_normal(0, 0, [str(i) for i in range(n)], 192)).view(n, 3, 8, 8)


def test_sampling_is_eulers_method_on_the_guided_velocity(network: ImageNetwork) -> None:
    embeddings, noise = inputs(3)
    made = sample(network, embeddings, noise, FP32, steps=5, guidance=2.5)
    x = noise.clone()
    told, hidden = torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
    with torch.inference_mode():
        for step in range(5):
            t = torch.full((3,), 1 - step / 5)
            v_0, v_e = (network(x, t, embeddings, withhold) for withhold in (hidden, told))
            x = x - (v_0 + 2.5 * (v_e - v_0)) / 5
    expected = ((x.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1)
    assert made.dtype == torch.uint8
    assert float((made.float() - expected).abs().max()) <= 0.51


def test_the_schedulers_flow_is_that_of_training() -> None:
    """Noise, image and velocity in diffusers' scheduler are those that the network is trained with."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    image, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 7, 7))
    x = noise
    for time in scheduler.timesteps:
        x = scheduler.step(noise - image, time, x).prev_sample
    torch.testing.assert_close(x, image, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_image_does_not_depend_on_its_company(network: ImageNetwork, precision: str) -> None:
    """The same pixels, bit by bit, alone, in a batch, in another place of it, and on another number of threads."""
    compute = devices.Compute("cpu", precision)
    size = sampling_batch(compute)
    embeddings, noise = inputs(size + 3)
    together = sample(network, embeddings, noise, compute, steps=3)
    alone = torch.cat([sample(network, embeddings[i : i + 1], noise[i : i + 1], compute, steps=3) for i in (0, size)])
    assert torch.equal(alone, together[[0, size]])
    order = torch.arange(size + 2, -1, -1)
    assert torch.equal(sample(network, embeddings[order], noise[order], compute, steps=3)[order], together)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(sample(network, embeddings[:2], noise[:2], compute, steps=3), together[:2])
    finally:
        torch.set_num_threads(threads)


def test_without_guidance_the_embedding_alone_is_followed(network: ImageNetwork) -> None:
    embeddings, noise = inputs(2)
    plain = sample(network, embeddings, noise, FP32, steps=2, guidance=1.0)
    close = sample(network, embeddings, noise, FP32, steps=2, guidance=1.0 + 1e-6)
    assert int((plain.int() - close.int()).abs().max()) <= 1
    assert not torch.equal(plain, sample(network, embeddings, noise, FP32, steps=2, guidance=4.0))
    assert sample(network, embeddings[:0], noise[:0], FP32).shape == (0, 8, 8, 3)


def test_a_withheld_embedding_is_not_read(network: ImageNetwork) -> None:
    embeddings, noise = inputs(2)
    hidden, times = torch.ones(2, dtype=torch.bool), torch.full((2,), 0.5)
    with torch.inference_mode():
        one, other = (network(noise, times, e, hidden) for e in (embeddings, -embeddings))
        told = network(noise, times, embeddings, ~hidden)
    assert torch.equal(one, other)
    assert not torch.allclose(told, one)


def test_sizes_are_what_they_are_called() -> None:
    assert {name: size.pixels for name, size in SIZES.items()} == {"tiny": 32, "small": 64, "base": 128}
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in ImageNetwork(s.config(512)).parameters()) for name, s in SIZES.items()}
    assert 3e6 < counts["tiny"] < 4e6 < counts["small"] < 4e7 < counts["base"] < 2e8


def test_settings_are_changed_by_name() -> None:
    size = load_size("tiny", ["pixels=16", "learning_rate=5e-4", "batch_size=8"])
    assert (size.pixels, size.training.learning_rate, size.training.batch_size) == (16, 5e-4, 8)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("depth=3", "depth=3"),
        ("pixels=many", "'many'"),
        ("pixels=12", "multiple of 8"),
        ("batch_size=0", "batch_size"),
        ("dropout=nan", "dropout"),
        ("blocks=0", "blocks"),
        ("weight_decay=inf", "weight_decay"),
    ],
)
def test_wrong_settings_are_refused(change: str, named: str) -> None:
    with pytest.raises(GeneratorError, match=named):
        load_size("tiny", [change])
