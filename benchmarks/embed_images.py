"""Measure images per second of `c3 embed` by backend, beside clip-retrieval and a plain open_clip loop.

    python benchmarks/embed_images.py FOLDER --peer ../clip-retrieval/bin/clip-retrieval
    python benchmarks/embed_images.py FOLDER --model c3-mini --how auto torch:fp32 openvino:bf16 onnx:fp32

The first 2,000 photos in FOLDER are used. The model is ViT-B/32 with random weights, which all programs read from one
file, or the model that --model names. ``--how`` lists backends and precisions (BACKEND:PRECISION, or ``auto``).
clip-retrieval 2.45 needs an environment of its own: `pip install "setuptools<70" clip-retrieval==2.45`; it gets images
only. ``--before COMMIT`` adds another commit of c3tools. The programs run in turn, and medians over the rounds are
printed. Rates do not include the time to load the model (for clip-retrieval its warm-up, as it reports it); the last
column is the time of the whole command.

The bare pass is the model alone on ready pixels, at the batch size of `c3 embed`. Together with the speed of decoding
alone, by processes on all cores, it gives the speed that is possible on these cores. The output ends with the cosine
of every embedding with that of torch in fp32, and with what limits the speed.

Takes about 8 minutes per round on 2 cores without bf16. With the extra ``openvino`` on a machine where bf16 is faster,
auto should be at least 3.3 times as fast as clip-retrieval, int8 5 times, and `c3 embed` should reach at least 0.9 of
the speed that is possible.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
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
    copy_files,
    peer_option,
    print_table,
    random_weights,
    run,
    timed,
    what_limits,
)

from c3tools.encoders.backends.base import ON_CPU

BARE_IMAGES = 256
REFERENCE = "torch:fp32"
LIMIT = "of bare pass and decoding"


def plain_loop(folder: Path, weights: Path, batch: int = 64) -> None:
    """Encode images as people write it: open, preprocess, stack, encode, normalise."""
    import open_clip
    import torch
    from PIL import Image

    model, _, preprocess = open_clip.create_model_and_transforms(MODEL, pretrained=str(weights))
    model.eval()
    files = sorted(folder.iterdir())

    def work() -> int:
        parts = []
        with torch.inference_mode():
            for start in range(0, len(files), batch):
                images = torch.stack([preprocess(Image.open(f).convert("RGB")) for f in files[start : start + batch]])
                parts.append(model.encode_image(images, normalize=True).numpy())
        return len(np.concatenate(parts))

    print(timed(work))


def bare_pass(model: str, how: str) -> None:
    """Run the image tower alone, on pixels that are ready."""
    from c3tools.encoders import load_encoder

    given = options(how)
    encoder = load_encoder(model, backend=given["backend"], precision=given["precision"])
    size = encoder.batch_size("image")
    pixels = np.random.default_rng(0).integers(0, 255, (size, *encoder.preprocess.size, 3), dtype=np.uint8)
    count = max(1, BARE_IMAGES // size)

    def work() -> int:
        return sum(len(part) for _, part in encoder.backend.run("image", ((None, pixels) for _ in range(count))))

    work()
    print(statistics.median(timed(work) for _ in range(3)))


def decode(folder: Path, model: str) -> None:
    """Read, decode and resize all photos by as many processes as there are cores, and do nothing else."""
    from c3tools.encoders import load_encoder

    preprocess = load_encoder(model, backend="torch", precision="fp32").preprocess
    files = sorted(folder.iterdir())
    with multiprocessing.Pool(len(os.sched_getaffinity(0)), _take, (preprocess,)) as pool:
        print(timed(lambda: sum(pool.imap_unordered(_decode_one, files, chunksize=8))))


def _take(preprocess: object) -> None:
    globals()["_preprocess"] = preprocess


def _decode_one(file: Path) -> int:
    return len(globals()["_preprocess"].load(file)[:1])


def options(how: str) -> dict[str, str]:
    """Return ``backend`` and ``precision`` of BACKEND:PRECISION; ``auto`` where they are not said."""
    backend, _, precision = how.partition(":")
    return {"backend": backend, "precision": precision or "auto"}


def embeddings(store: Path) -> dict[str, np.ndarray]:
    """Return unit vectors of a store by key; storage in float16 has moved their lengths a little."""
    from c3tools import Store

    rows = Store.open(store).load("image")
    unit = rows.embeddings / np.linalg.norm(rows.embeddings, axis=1, keepdims=True)
    return dict(zip(rows.keys, unit, strict=True))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    """All contestants in turn, round after round; then the table."""
    model, peers = arguments.model, not arguments.model
    if not model:
        weights = random_weights(folder / "weights.pt")
        model = f"{MODEL}/{weights}"
    photos = copy_files(sorted(arguments.folder.iterdir())[: arguments.count], folder / "photos")
    rates: dict[str, list[float]] = {}
    whole: dict[str, list[float]] = {}

    def note(name: str, rate: float, seconds: float | None = None) -> None:
        rates.setdefault(name, []).append(rate)
        if seconds is not None:
            whole.setdefault(name, []).append(seconds)

    hows = list(dict.fromkeys([*arguments.how, REFERENCE]))
    before = checkout(arguments.before, folder / "before") if arguments.before else None
    took: dict[str, str] = {}  # precision by name
    for number in range(arguments.rounds):
        for how in hows:
            given = [f"--{name}={value}" for name, value in options(how).items()]
            result, done = c3_embed(photos, folder / f"{how}-{number}", ["--model", model], *given)
            name = f"c3 embed, {how} ({result['backend']} {result['precision']})"
            took[name] = result["precision"]
            note(name, result["modalities"]["image"]["rate"], done.seconds)
            note(f"bare pass, {how}", child_rate("bare", how, model))
        note("decoding alone", child_rate("decode", photos, model))
        if before:
            result, done = c3_embed(photos, folder / f"before-{number}", ["--model", model], source=before)
            note(f"c3 embed, {arguments.before}", result["modalities"]["image"]["rate"], done.seconds)
        if arguments.peer and peers:
            rate, done = clip_retrieval(arguments.peer, photos, folder / f"peer-{number}", weights, "image")
            note("clip-retrieval", rate, done.seconds)
        if peers:
            note("plain open_clip loop", child_rate("plain", photos, weights))
    middle = {name: statistics.median(values) for name, values in rates.items()}
    rows = []
    for name, rate in middle.items():
        bare = middle.get(f"bare pass, {name.split()[2]}") if name in took else None
        possible = 1 / (1 / bare + 1 / middle["decoding alone"]) if bare else None  # both on the same cores
        rows.append(
            (
                name,
                f"{rate:.1f}",
                f"{min(rates[name]):.1f} to {max(rates[name]):.1f}",
                f"{rate / middle['clip-retrieval']:.2f}" if "clip-retrieval" in middle else "",
                f"{rate / middle[f'c3 embed, {arguments.before}']:.2f}" if before else "",
                f"{rate / possible:.2f}" if possible else "",
                f"{statistics.median(whole[name]):.0f}" if name in whole else "",
            )
        )
    print(f"{arguments.count} photos, {arguments.model or f'{MODEL} with random weights'}, {arguments.rounds} rounds")
    print_table(
        ("", "images/s", "range", "of clip-retrieval", f"of {arguments.before or 'before'}", LIMIT, "command, s"), rows
    )
    exact = embeddings(folder / f"{REFERENCE}-0")
    for how in hows:
        cosines = [vector @ exact[key] for key, vector in embeddings(folder / f"{how}-0").items()]
        print(f"{how}: smallest cosine with {REFERENCE} over {len(cosines):,} photos {min(cosines):.5f}")
    for name, precision in took.items():
        print(f"{name}: {what_limits(model, 'image', middle[name], precision, ON_CPU['image'])}")


def child_rate(task: str, argument: object, model: object) -> float:
    """Images per second of one of this script's own contestants, in a process of its own."""
    return float(run([sys.executable, __file__, "--task", task, argument, model]).stdout.split()[-1])


def main() -> None:
    """Parse, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", help="another model; without peers")
    parser.add_argument("--how", nargs="+", default=["auto", "torch:fp32", "openvino:int8"], help="BACKEND:PRECISION")
    parser.add_argument("--task", nargs=3, help=argparse.SUPPRESS)
    peer_option(parser)
    arguments = parser.parse_args()
    if arguments.task:
        task, argument, model = arguments.task
        if task == "plain":
            plain_loop(Path(argument), Path(model))
        elif task == "decode":
            decode(Path(argument), model)
        else:
            bare_pass(model, argument)
        return
    with tempfile.TemporaryDirectory() as temporary:
        measure(arguments, Path(temporary))


if __name__ == "__main__":
    main()
