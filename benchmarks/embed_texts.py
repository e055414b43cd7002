"""Measure texts per second of `c3 embed`, beside clip-retrieval and a plain open_clip loop, which pad all texts.

    python benchmarks/embed_texts.py captions.jsonl --peer ../clip-retrieval/bin/clip-retrieval

Uses the first 20,000 captions; the slower programs get the first ``--few`` of them (4,000). The model is ViT-B/32 with
random weights, which all programs read from one file. ``--before COMMIT`` adds another commit of c3tools. Rates do not
include the time to load the model (for clip-retrieval its warm-up, as it reports it); the last column is the time of
the whole command. The output ends with the largest difference between any value of an embedding and that of the padded
text in fp32, over the few captions.

Takes about 8 minutes per round on 2 cores. It should print at least 10 times the speed of clip-retrieval with auto on a
machine where bf16 is faster, at least 5 times in fp32, and a difference of at most 1e-5 in fp32.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from measuring import (
    MODEL,
    c3_embed,
    checkout,
    clip_retrieval,
    peer_option,
    print_table,
    random_weights,
    run,
    timed,
    what_limits,
)


def read_captions(path: Path, count: int) -> list[str]:
    """Return the first captions of a captions file, one after another."""
    from c3tools.corpus.captions import read_captions as rows

    captions = (" ".join(caption.split()) for row in rows(path, None) for caption in row.captions)
    return [caption for caption, _ in zip(captions, range(count), strict=False)]


def plain_loop(captions: Path, weights: Path, output: Path, batch: int = 64) -> None:
    """Encode texts as people write it: tokenise with padding, encode, normalise; keep the embeddings."""
    import open_clip
    import torch

    model = open_clip.create_model(MODEL, pretrained=str(weights)).eval()
    tokenise = open_clip.get_tokenizer(MODEL)
    texts = captions.read_text(encoding="utf-8").splitlines()

    def work() -> int:
        parts = []
        with torch.inference_mode():
            for start in range(0, len(texts), batch):
                parts.append(model.encode_text(tokenise(texts[start : start + batch]), normalize=True).numpy())
        np.save(output, np.concatenate(parts))
        return len(texts)

    print(timed(work))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    """All contestants in turn, round after round; then the table."""
    from c3tools.encoders import Calibration, load_encoder
    from c3tools.encoders.backends.base import ON_CPU

    weights = random_weights(folder / "weights.pt")
    model = ["--model", f"{MODEL}/{weights}"]
    captions = read_captions(arguments.captions, arguments.count)
    few = captions[: arguments.few]
    (folder / "all.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
    (folder / "few.txt").write_text("\n".join(few) + "\n", encoding="utf-8")
    if arguments.peer:
        (folder / "few").mkdir()
        for number, caption in enumerate(few):
            (folder / "few" / f"{number:06d}.txt").write_text(caption, encoding="utf-8")
    before = checkout(arguments.before, folder / "before") if arguments.before else None
    took: dict[str, str] = {}
    rates: dict[str, list[float]] = {}
    whole: dict[str, list[float]] = {}
    for number in range(arguments.rounds):
        for precision in arguments.precisions:
            store = folder / f"{precision}-{number}"
            result, done = c3_embed(folder / "all.txt", store, model, "--precision", precision)
            name = f"c3 embed, {precision} ({result['backend']} {result['precision']})"
            took[name] = result["precision"]
            rates.setdefault(name, []).append(result["modalities"]["text"]["rate"])
            whole.setdefault(name, []).append(done.seconds)
        if before:
            result, done = c3_embed(folder / "all.txt", folder / f"before-{number}", model, source=before)
            rates.setdefault(f"c3 embed, {arguments.before}", []).append(result["modalities"]["text"]["rate"])
            whole.setdefault(f"c3 embed, {arguments.before}", []).append(done.seconds)
        if arguments.peer:
            rate, done = clip_retrieval(arguments.peer, folder / "few", folder / f"peer-{number}", weights, "text")
            rates.setdefault("clip-retrieval", []).append(rate)
            whole.setdefault("clip-retrieval", []).append(done.seconds)
        task = [sys.executable, __file__, "--task", folder / "few.txt", weights, folder / "padded.npy"]
        rates.setdefault("plain open_clip loop", []).append(float(run(task).stdout.split()[-1]))
    middle = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{len(captions):,} captions ({len(few):,} for clip-retrieval and the loop), {MODEL} with random weights")
    rows = [
        (
            name,
            f"{rate:.1f}",
            f"{min(rates[name]):.1f} to {max(rates[name]):.1f}",
            f"{rate / middle['clip-retrieval']:.2f}" if arguments.peer else "",
            f"{rate / middle[f'c3 embed, {arguments.before}']:.2f}" if before else "",
            f"{statistics.median(whole[name]):.0f}" if name in whole else "",
        )
        for name, rate in middle.items()
    ]
    print_table(("", "texts/s", "range", "of clip-retrieval", f"of {arguments.before or 'before'}", "command, s"), rows)
    padded = np.load(folder / "padded.npy")
    for precision in arguments.precisions:
        calibration = Calibration(texts=captions)
        trimmed = load_encoder(f"{MODEL}/{weights}", precision=precision, calibration=calibration).encode_texts(few)
        difference, cosine = np.abs(trimmed - padded).max(), (trimmed * padded).sum(axis=1).min()
        print(f"{precision}: largest difference to padded fp32 {difference:.1e}, smallest cosine {cosine:.5f}")
    for name, precision in took.items():
        print(f"{name}: {what_limits(f'{MODEL}/{weights}', 'text', middle[name], precision, ON_CPU['text'])}")


def main() -> None:
    """Parse, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", type=Path, nargs="?")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--few", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precisions", nargs="+", default=["auto", "fp32", "int8"])
    parser.add_argument("--task", nargs=3, type=Path, help=argparse.SUPPRESS)
    peer_option(parser)
    arguments = parser.parse_args()
    if arguments.task:
        plain_loop(*arguments.task)
        return
    with tempfile.TemporaryDirectory() as temporary:
        measure(arguments, Path(temporary))


if __name__ == "__main__":
    main()
