"""Images per second of the built-in image generator, in training and in sampling, beside the bare network.

    python benchmarks/generator_throughput.py                 # size tiny, about 4 minutes on 2 cores
    python benchmarks/generator_throughput.py --size small

Training is one run of the trainer (batches, flips, Corrupt's noise, the optimiser, the average of the weights) on
random photos and embeddings: speed does not depend on their values. Beside it stand forward and backward pass alone,
on a batch that is ready. Sampling is with guidance, so each step runs the network on twice the images; beside it stand
these forward passes alone. Everything is measured in turn, ``--rounds`` times after a round that is not counted, and
medians are printed. Both shares should be at least 0.85, and 1,000 images of size tiny with 25 steps take at most 2
minutes on 2 cores. Needs the extra ``images``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from measuring import print_table, timed

from c3tools import devices
from c3tools.imaging import Photos, Size, load_size
from c3tools.imaging.model import GUIDANCE, SAMPLING_STEPS, ImageNetwork, autocast, sample, sampling_batch
from c3tools.imaging.training import Trainer
from c3tools.moments import Moments, unit_rows
from c3tools.store import Rows
from c3tools.transforms import preset

DIM = 256
PHOTOS = 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="tiny", help="tiny, small or base")
    parser.add_argument("--steps", type=int, default=60, help="training steps of each measurement")
    parser.add_argument("--images", type=int, default=64, help="sampled in each measurement")
    parser.add_argument("--precision", default="auto", help="auto, fp32 or bf16")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    size, compute = load_size(options.size), devices.pick("cpu", options.precision)
    photos = random_photos(size.pixels)
    measures: dict[str, Callable[[], float]] = {
        "training": lambda: training(size, photos, compute, options.steps),
        "forward and backward pass": lambda: both_passes(size, compute, options.steps),
        "sampling": lambda: sampling(size, compute, options.images),
        "forward passes": lambda: forward_passes(size, compute, options.images),
    }
    rates: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(options.rounds + 1):
        for name, measure in measures.items():
            rate = measure()
            if number:  # the first round makes the kernels
                rates[name].append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    rows = []
    for whole, bare in (("training", "forward and backward pass"), ("sampling", "forward passes")):
        spread = f"{min(rates[whole]):,.1f} – {max(rates[whole]):,.1f}"
        rows.append((whole, f"{medians[whole]:,.1f}", spread, bare, f"{medians[bare]:,.1f}"))
        rows[-1] += (f"{medians[whole] / medians[bare]:.2f}",)  # type: ignore[assignment]
    parameters = sum(weights.numel() for weights in ImageNetwork(size.config(DIM)).parameters())
    about = f"{parameters / 1e6:.1f} M parameters, {compute.precision}, {devices.threads()} threads"
    print(f"size {options.size}, {about}")
    print_table(("", "images/s (median)", "lowest – highest", "bare", "images/s", "share"), rows)
    print(
        f"1,000 images take {1000 / medians['sampling']:,.0f} s, with {SAMPLING_STEPS} steps and guidance {GUIDANCE:g}."
    )


def random_photos(pixels: int) -> Photos:
    """Return photos and embeddings without content."""
    rng = np.random.default_rng(0)
    rows = Rows.of("image", [str(row) for row in range(PHOTOS)], unit_rows(rng.standard_normal((PHOTOS, DIM))))
    return Photos(rows, rng.integers(0, 256, (PHOTOS, pixels, pixels, 3), np.uint8), [], [])


def training(size: Size, photos: Photos, compute: devices.Compute, steps: int) -> float:
    """Photos per second of the trainer's steps, its validations left out."""
    moments = {name: Moments.from_rows(photos.rows.embeddings) for name in ("image", "text")}
    pipeline = preset("c3", sigma=0.1, train_on="image", infer_on="text").fit(moments)
    config = replace(size.training, steps=steps, validations=1)
    network = ImageNetwork(size.config(DIM))
    trainer = Trainer(network, photos, photos.select(np.arange(8)), pipeline, config, compute)
    trainer.run()
    return steps * trainer.batch_size / trainer.state.seconds


def both_passes(size: Size, compute: devices.Compute, steps: int) -> float:
    """Photos per second of forward and backward pass alone."""
    network, count = ImageNetwork(size.config(DIM)).train(), size.training.batch_size
    images, times, embeddings, withhold = inputs(size, count)

    def work() -> int:
        for _ in range(steps):
            network.zero_grad()
            with autocast(compute):
                velocity = network(images, times, embeddings, withhold)
            velocity.float().square().mean().backward()
        return steps * count

    return timed(work)


def sampling(size: Size, compute: devices.Compute, count: int) -> float:
    """Images per second of `c3 generate`, once the network is loaded."""
    network = ImageNetwork(size.config(DIM)).eval()
    noise, _, embeddings, _ = inputs(size, count)
    return timed(lambda: len(sample(network, embeddings, noise, compute)))


@torch.inference_mode()
def forward_passes(size: Size, compute: devices.Compute, count: int) -> float:
    """Images per second of the forward passes that sampling needs, alone."""
    network, batch = ImageNetwork(size.config(DIM)).eval(), 2 * sampling_batch(compute)
    images, times, embeddings, withhold = inputs(size, batch)
    batches = -(-2 * count // batch)
    started = time.perf_counter()
    for _ in range(batches * SAMPLING_STEPS):
        with autocast(compute):
            network(images, times, embeddings, withhold)
    return count / (time.perf_counter() - started)


def inputs(size: Size, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return noisy images, times, embeddings, and for which of them the embedding is withheld."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randn((count, 3, size.pixels, size.pixels), generator=rng)
    embeddings = torch.nn.functional.normalize(torch.randn((count, DIM), generator=rng), dim=-1)
    return images, torch.rand(count, generator=rng), embeddings, torch.rand(count, generator=rng) < size.training.drop


if __name__ == "__main__":
    main()
