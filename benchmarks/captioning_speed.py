"""Compare captioning from embeddings with and without the key-value cache: speed, and whether the tokens are the same.

    python benchmarks/captioning_speed.py --decoder c3-decoder --store c3-store     # the test images of a store
    python benchmarks/captioning_speed.py                                           # random weights, 1,000 embeddings

Decoding is greedy, in fp32. Without the cache, the whole sequence is computed again for every token, in the same
batches, and finished rows are removed in the same way. With random weights few captions end early, so most reach the
maximum length, which is the slowest case.

Takes about a minute on 2 cores. It should print the same tokens for every image, and less than 20 s with the cache for
1,000 images.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from c3tools.captioning import CaptionDecoder, Captioner, Decoder, Size, generate, load_size
from c3tools.captioning.generation import GenerationConfig
from c3tools.captioning.model import allowed
from c3tools.store import Store


@torch.inference_mode()
def without_cache(model: Decoder, inputs: np.ndarray, batch_size: int) -> list[list[int]]:
    """Greedy captions, everything computed again for every token."""
    captions: list[list[int]] = []
    for start in range(0, len(inputs), batch_size):
        batch = torch.from_numpy(inputs[start : start + batch_size])
        written: list[list[int]] = [[] for _ in range(len(batch))]
        rows = torch.arange(len(batch))
        tokens = torch.full((len(batch), 1), model.pad_id)
        for step in range(model.config.max_tokens):
            logits = model(batch[rows], tokens)[:, step]
            chosen = allowed(model, logits).argmax(-1)
            going = chosen != model.end_id
            for row, token in zip(rows[going].tolist(), chosen[going].tolist(), strict=True):
                written[row].append(token)
            tokens[:, step] = chosen
            rows, tokens = rows[going], tokens[going]
            if not len(rows):
                break
            tokens = torch.cat([tokens, torch.full((len(rows), 1), model.pad_id)], dim=1)
        captions += written
    return captions


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decoder", type=Path, default=None)
    parser.add_argument("--store", type=Path, default=None)
    parser.add_argument("--split", default="test")
    parser.add_argument("--size", default="small", help="of the random decoder")
    parser.add_argument("--count", type=int, default=1000, help="of random embeddings")
    parser.add_argument("--batch-size", type=int, default=GenerationConfig().batch_size)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    if options.decoder and options.store:
        captioner = Captioner.load(options.decoder, trainable=True)
        model: Decoder = captioner.torch_decoder()
        images = Store.open(options.store).load("image", split=options.split).embeddings
        inputs = captioner.pipeline.transform(images, modality="image")
    else:
        chosen = load_size(options.size)
        assert isinstance(chosen, Size)
        torch.manual_seed(0)
        model = CaptionDecoder(chosen.config(512, chosen.vocab_size)).eval()
        inputs = np.random.default_rng(0).normal(size=(options.count, 512)).astype(np.float32)
        inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    config = GenerationConfig(batch_size=options.batch_size)
    generate(model, inputs[:8], config)
    started = time.perf_counter()
    cached = generate(model, inputs, config)
    middle = time.perf_counter()
    uncached = without_cache(model, inputs, options.batch_size)
    ended = time.perf_counter()
    same = sum(first == second for first, second in zip(cached, uncached, strict=True))
    lengths = [len(ids) for ids in cached]
    print(f"{len(inputs):,} captions of {np.mean(lengths):.1f} tokens, batches of {options.batch_size}")
    print("| | seconds | captions/s |\n|---|---|---|")
    for name, seconds in (("with cache", middle - started), ("without", ended - middle)):
        print(f"| {name} | {seconds:.2f} | {len(inputs) / seconds:,.0f} |")
    print(f"token for token the same: {same:,} of {len(inputs):,}")
    if options.json:
        content = {"n": len(inputs), "cached": middle - started, "uncached": ended - middle, "same": same}
        options.json.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
