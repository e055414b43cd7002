"""Measure images and texts per second of `c3 embed`, beside clip-retrieval and a plain open_clip
loop.

    python benchmarks/embed_speed.py flickr8k/images --count 400 --peer clip-retrieval
    python benchmarks/embed_speed.py captions.jsonl --count 8000 --few 2000 --peer clip-retrieval
    python benchmarks/embed_speed.py flickr8k/images --model c3-mini --count 2000 --how auto
    torch:fp32 python benchmarks/embed_speed.py flickr8k/images --model st:FOLDER  # beside a loop
    of sentence-transformers

The model is ViT-B/32 with random weights, which all programs read from one file, or the one that
--model names, without the others. ``--how`` lists BACKEND:PRECISION, or ``auto``. clip-retrieval
2.45 needs an environment of its own: `pip install "setuptools<70" clip-retrieval==2.45`. Of texts,
clip-retrieval and the loop get the first ``--few``: they pad and are slow. The programs run in
turn; medians over the rounds are printed, without the time to load the model. For photos, the last
column is the share of what is possible: decoding alone on all cores, and the bare image tower
alone. The output ends with the smallest cosine of an embedding with that of torch in fp32.

Takes about 8 minutes per round on 2 cores without bf16. It should print at least 3 times the speed
of clip-retrieval for photos and 10 times for texts on a machine where bf16 is faster.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measuring import MODEL, c3_embed, clip_retrieval, print_table, random_weights, run, timed

REFERENCE = "torch:fp32"


def plain_loop(source: Path, weights: Path, sizes: tuple[int, ...] = (64,)) -> None:
    """Encode as people write it: open or tokenise with padding, stack, encode; a folder by
    sentence-transformers.
    """
    import torch
    from PIL import Image

    items: list[Any] = (
        sorted(source.iterdir()) if source.is_dir() else source.read_text("utf-8").splitlines()
    )
    if weights.is_dir():
        from sentence_transformers import SentenceTransformer

        library, sizes = SentenceTransformer(str(weights), device="cpu"), (32, 64, 128, 256)
    else:
        import open_clip

        model, _, preprocess = open_clip.create_model_and_transforms(MODEL, pretrained=str(weights))
        model.eval()
        tokenise = open_clip.get_tokenizer(MODEL)

    def encode(part: list[Any]) -> Any:
        opened = [Image.open(f).convert("RGB") for f in part] if source.is_dir() else part
        if weights.is_dir():
            return library.encode(opened, batch_size=len(part), normalize_embeddings=True)
        if source.is_dir():
            return model.encode_image(torch.stack([preprocess(image) for image in opened]))
        return model.encode_text(tokenise(part))

    def work(size: int) -> int:
        if weights.is_dir() and not source.is_dir():  # it orders them by length itself
            return len(library.encode(items, batch_size=size, normalize_embeddings=True))
        with torch.inference_mode():
            return sum(
                len(encode(items[start : start + size])) for start in range(0, len(items), size)
            )

    print(max(timed(partial(work, size)) for size in sizes))


def bare_pass(model: str, how: str) -> None:
    """Run the image tower alone, on pixels that are ready."""
    from c3tools.encoders import load_encoder

    backend, precision = options(how)
    encoder = load_encoder(model, backend=backend, precision=precision)
    size = encoder.batch_size("image")
    pixels = np.random.default_rng(0).integers(
        0, 255, (size, *encoder.preprocess.size, 3), dtype=np.uint8
    )
    batches = [pixels] * max(1, 256 // size)

    def encode() -> int:
        running = [encoder.backend.submit("image", batch) for batch in batches]
        return sum(len(one()) for one in running)

    rates = [timed(encode) for _ in range(4)]
    print(statistics.median(rates[1:]))


def decode(folder: Path, model: str) -> None:
    """Read, decode and resize all photos by as many processes as there are cores, and do nothing
    else.
    """
    from c3tools.encoders import load_encoder

    load = load_encoder(model, backend="torch", precision="fp32").preprocess.load
    with multiprocessing.Pool(len(os.sched_getaffinity(0))) as pool:
        print(timed(lambda: len(pool.map(load, sorted(folder.iterdir()), chunksize=8))))


def options(how: str) -> tuple[str, Any]:
    """Return backend and precision of BACKEND:PRECISION; ``auto`` where they are not said."""
    backend, _, precision = how.partition(":")
    return backend, precision or "auto"


def embeddings(store: Path, modality: str) -> dict[str, np.ndarray]:
    """Return the unit vectors of a store by key; storage in float16 has moved their lengths a
    little.
    """
    from c3tools import Store

    rows = Store.open(store).load(modality)
    unit = rows.embeddings / np.linalg.norm(rows.embeddings, axis=1, keepdims=True)
    return dict(zip(rows.keys, unit, strict=True))


def prepare(arguments: argparse.Namespace, folder: Path) -> tuple[str, Path, Path, Path]:
    """Return the modality, what c3tools reads, and what the loop and the peer read: parts of the
    corpus.
    """
    if arguments.source.is_dir():
        photos = folder / "photos"
        photos.mkdir()
        for file in sorted(arguments.source.iterdir())[: arguments.count]:
            shutil.copyfile(file, photos / file.name)
        return "image", photos, photos, photos
    from c3tools.corpus.caption_tables import read_captions

    rows = (
        " ".join(caption.split())
        for row in read_captions(arguments.source, None)
        for caption in row.captions
    )
    captions = [caption for caption, _ in zip(rows, range(arguments.count), strict=False)]
    few = captions[: arguments.few]
    for name, part in (("all.txt", captions), ("few.txt", few)):
        (folder / name).write_text("\n".join(part) + "\n", encoding="utf-8")
    (folder / "few").mkdir()
    for number, caption in enumerate(few):
        (folder / "few" / f"{number:06d}.txt").write_text(caption, encoding="utf-8")
    return "text", folder / "all.txt", folder / "few.txt", folder / "few"


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    """Run all contestants in turn, round after round, and print the table."""
    weights = folder / "weights.pt"
    model = arguments.model or f"{MODEL}/{random_weights(weights)}"
    modality, whole, plain, peer = prepare(arguments, folder)
    reference = "auto" if (library := model.startswith("st:")) else REFERENCE
    hows = [reference] if library else list(dict.fromkeys([*arguments.how, reference]))
    rates: dict[str, list[float]] = {}
    bare: dict[str, list[float]] = {}
    names: dict[str, str] = {}
    for number in range(arguments.rounds):
        for how in hows:
            backend, precision = options(how)
            store = folder / f"{how}-{number}"
            result, _ = c3_embed(
                whole, store, "--model", model, "--backend", backend, "--precision", precision
            )
            names[how] = f"c3 embed, {how} ({result['backend']} {result['precision']})"
            rates.setdefault(names[how], []).append(result["modalities"][modality]["rate"])
            if modality == "image" and not library:
                bare.setdefault(how, []).append(child_rate("bare", model, how))
        if modality == "image" and not library:
            rates.setdefault("decoding alone", []).append(child_rate("decode", whole, model))
        if arguments.peer and not arguments.model:
            found = clip_retrieval(
                arguments.peer, peer, folder / f"peer-{number}", weights, modality
            )
            rates.setdefault("clip-retrieval", []).append(found)
        if library or not arguments.model:
            rates.setdefault("plain loop", []).append(
                child_rate("plain", plain, model[3:] if library else weights)
            )
    middle = {name: statistics.median(values) for name, values in rates.items()}
    possible = {
        names[how]: 1 / (1 / statistics.median(values) + 1 / middle["decoding alone"])
        for how, values in bare.items()
    }
    rows = [
        (
            name,
            f"{rate:.1f} ({min(rates[name]):.1f} to {max(rates[name]):.1f})",
            f"{rate / middle['clip-retrieval']:.2f}" if "clip-retrieval" in middle else "",
            f"{rate / possible[name]:.2f}" if name in possible else "",
        )
        for name, rate in middle.items()
    ]
    print_table(("", f"{modality}s/s", "of clip-retrieval", "of what is possible"), rows)
    exact = embeddings(folder / f"{reference}-0", modality)
    for how in hows:
        cosines = [
            float(row @ exact[key])
            for key, row in embeddings(folder / f"{how}-0", modality).items()
        ]
        print(
            f"{how}: smallest cosine with {reference} over {len(cosines):,} {modality}s "
            f"{min(cosines):.5f}"
        )


def child_rate(task: str, *arguments: object) -> float:
    """Return the rate of one of this script's own contestants, in a process of its own."""
    return float(run([sys.executable, __file__, "--task", task, *arguments]).stdout.split()[-1])


def main() -> None:
    """Parse, measure."""
    if sys.argv[1:2] == ["--task"]:
        task, first, second = sys.argv[2:]
        tasks = {
            "plain": lambda: plain_loop(Path(first), Path(second)),
            "bare": lambda: bare_pass(first, second),
        }
        tasks["decode"] = lambda: decode(Path(first), second)
        tasks[task]()
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="a folder of photos, or a file of captions")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--few", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", help="another model; without the other programs")
    parser.add_argument(
        "--how",
        nargs="+",
        default=["auto", "torch:fp32", "openvino:int8"],
        metavar="BACKEND:PRECISION",
    )
    parser.add_argument(
        "--peer", type=Path, help="clip-retrieval's command; left out if it is not given"
    )
    with tempfile.TemporaryDirectory() as temporary:
        measure(parser.parse_args(), Path(temporary))


if __name__ == "__main__":
    main()
