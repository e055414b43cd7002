"""Compare the training speed of the built-in decoder with that of a plain GPT-2 of transformers of the same size.

    python benchmarks/decoder_throughput.py                   # size tiny, about 3 minutes on 2 cores
    python benchmarks/decoder_throughput.py --size small      # about 6 minutes

Both learn the bundled COCO captions from random embeddings (the values do not affect the speed), with the same width,
layers, heads, vocabulary, prefix and batch size. Needs the extra `hf`. The GPT-2 is written in the obvious way:
GPT2LMHeadModel from a config, a linear prefix as inputs_embeds, shuffled batches padded to their longest caption with
an attention mask, noise from torch.randn, AdamW. A second row runs it in bf16 with autocast if the machine supports
bf16. The rows are measured in turn, `--rounds` times after a warm-up round. Tokens are those of captions, without
padding.

It should print that c3 in fp32 is about 3 times as fast as the GPT-2 in fp32 (an EPYC with avx512_bf16, `--steps 60
--rounds 2`: 15,841 and 5,214 tokens/s; c3 in bf16 only 4,298 – 11,118).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from c3tools import devices
from c3tools.assets.paths import CAPTIONS
from c3tools.captioning import CaptionDecoder, CaptionTask, CaptionTokenizer, Size, load_size, training_config
from c3tools.corpus import read_corpus
from c3tools.moments import Moments
from c3tools.store import Rows
from c3tools.training.loop import train
from c3tools.transforms import preset

DIM = 512


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="tiny", help="tiny, small or base")
    parser.add_argument("--steps", type=int, default=120, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    chosen = load_size(options.size)
    assert isinstance(chosen, Size)
    captions = [item.caption for item in read_corpus([CAPTIONS]).texts][: options.steps * chosen.training.batch_size]
    tokenizer = CaptionTokenizer.train(captions, chosen.vocab_size)
    tokens = tokenizer.encode(captions, chosen.max_tokens)
    embeddings = np.random.default_rng(0).normal(size=(len(captions), DIM)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    auto = devices.pick("cpu")
    rows: dict[str, Callable[[], float]] = {
        f"c3 ({auto.precision}, its default here)": lambda: ours(chosen, tokenizer, captions, embeddings, auto),
        "c3 (fp32)": lambda: ours(chosen, tokenizer, captions, embeddings, devices.pick("cpu", "fp32")),
        "GPT-2 of transformers (fp32, its default)": lambda: theirs(chosen, tokenizer, tokens, embeddings, False),
    }
    if auto.precision == "bf16":
        rows["GPT-2 of transformers (bf16 autocast)"] = lambda: theirs(chosen, tokenizer, tokens, embeddings, True)
    rates: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(options.rounds + 1):
        for name, measure in rows.items():
            rate = measure()
            if number:  # the first round warms up: kernels are made for every shape of batch
                rates[name].append(rate)
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    first = next(iter(medians.values()))
    batch, threads = chosen.training.batch_size, torch.get_num_threads()
    print(f"size {options.size}, batch {batch}, {options.steps} steps, {threads} threads")
    print("| decoder | tokens/s (median) | lowest – highest | c3 is faster by |\n|---|---|---|---|")
    for name, rate in medians.items():
        print(f"| {name} | {rate:,.0f} | {min(rates[name]):,.0f} – {max(rates[name]):,.0f} | {first / rate:.2f} |")
    if options.json:
        options.json.write_text(json.dumps({"size": options.size, "tokens_per_second": rates}, indent=1))


def ours(
    chosen: Size,
    tokenizer: CaptionTokenizer,
    captions: list[str],
    embeddings: np.ndarray,
    compute: devices.Compute,
) -> float:
    """Tokens per second of one epoch of the trainer: noise, batches, optimiser and all."""
    everything = Rows.of("text", [str(row) for row in range(len(captions))], embeddings, caption=captions)
    moments = {"text": Moments.from_rows(embeddings)}
    model = CaptionDecoder(chosen.config(DIM, tokenizer.vocab_size))
    few = everything.select(np.arange(8))
    pipeline = preset("c3", sigma=0.05).fit(moments)
    config = training_config(chosen, epochs=1)
    epoch = train(CaptionTask(model, tokenizer, everything, few, pipeline, config, compute)).history[0]
    return epoch.count / epoch.seconds


def theirs(
    chosen: Size, tokenizer: CaptionTokenizer, tokens: list[list[int]], embeddings: np.ndarray, bf16: bool
) -> float:
    """Tokens per second of the straightforward loop over the same captions."""
    from transformers import GPT2Config, GPT2LMHeadModel

    prefix = chosen.prefix_length
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=tokenizer.vocab_size,
            n_positions=prefix + chosen.max_tokens,
            n_embd=chosen.width,
            n_layer=chosen.layers,
            n_head=chosen.heads,
            bos_token_id=tokenizer.end_id,
            eos_token_id=tokenizer.end_id,
        )
    ).train()
    mapper = torch.nn.Linear(DIM, prefix * chosen.width)
    optimizer = torch.optim.AdamW([*model.parameters(), *mapper.parameters()], lr=1e-3)
    inputs = torch.from_numpy(embeddings)
    order = torch.randperm(len(tokens)).tolist()
    counted, started = 0, time.perf_counter()
    for start in range(0, len(order), chosen.training.batch_size):
        rows = order[start : start + chosen.training.batch_size]
        captions = [torch.tensor(tokens[row]) for row in rows]
        ids = torch.nn.utils.rnn.pad_sequence(captions, batch_first=True, padding_value=tokenizer.pad_id)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(c)) for c in captions], batch_first=True)
        noised = torch.nn.functional.normalize(inputs[rows] + 0.05 * torch.randn(len(rows), DIM), dim=-1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            first = mapper(noised).view(len(rows), prefix, chosen.width)
            x = torch.cat([first, model.get_input_embeddings()(ids)], dim=1)
            whole = torch.cat([torch.ones(len(rows), prefix), mask], dim=1)
            labels = torch.cat([torch.full((len(rows), prefix), -100), ids.masked_fill(mask == 0, -100)], dim=1)
            loss = model(inputs_embeds=x, attention_mask=whole, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        counted += int(mask.sum())
    return counted / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
