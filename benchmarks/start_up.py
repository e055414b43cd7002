"""Measure processor time and wall time of short commands, which spend most of it on starting.

    python benchmarks/start_up.py                 # 3 rounds
    python benchmarks/start_up.py --json start-up.json

Each command runs in a process of its own, with a warm cache (there is a warm-up round). It runs with the backend that
`auto` chooses, and with torch, the only one without the extras openvino and onnx. Medians of the rounds are printed.
Processor time hardly depends on other programs.

Takes a minute on 2 idle cores. With openvino it should print at most 2.5 s for `embed` of one photo, 3 s for `caption`
of one photo and for `gap-report` of the bundled photos, and 0.25 s for `--help`.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from measuring import C3, run

from c3tools import Captioner, Store, preset
from c3tools.assets.paths import PHOTOS
from c3tools.captioning import CaptionDecoder, CaptionTokenizer, load_size
from c3tools.captioning.config import Size


def measure(command: Sequence[object], store: Path, rounds: int) -> tuple[float, float]:
    """Run a command, which may write ``store``, a few times: median seconds of the processor, and of the clock."""
    processor, wall = [], []
    for number in range(rounds + 1):
        shutil.rmtree(store, ignore_errors=True)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        run([*C3, *command])
        seconds = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if number:
            wall.append(seconds)
            processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(processor), statistics.median(wall)


def save_captioner(store: Path, folder: Path) -> None:
    """Save a captioner of the size ``small`` with random weights, which runs to the longest caption."""
    opened, size = Store.open(store), load_size("small")
    assert isinstance(size, Size)
    tokenizer = CaptionTokenizer.train(opened.load("text").captions, size.vocab_size)
    decoder = CaptionDecoder(size.config(opened.info.dim, tokenizer.vocab_size))
    Captioner(decoder, tokenizer, preset("c3", sigma=0.1).fit(opened), {"model": opened.info.model}).save(folder)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "one").mkdir()
        photo = folder / "one" / "photo.jpg"
        shutil.copy(min((PHOTOS / "images").iterdir()), photo)
        photos, decoder, store = folder / "photos", folder / "decoder", folder / "store"
        run([*C3, "embed", PHOTOS / "images", "--store", photos])
        save_captioner(photos, decoder)
        results = []
        for backend in ("auto", "torch"):
            commands: dict[str, list[object]] = {
                "embed one/": ["embed", folder / "one", "--store", store, "--backend", backend],
                "caption photo.jpg": ["caption", photo, "--decoder", decoder, "--backend", backend],
            }
            if backend == "auto":
                commands["gap-report"] = ["gap-report", photos, "--html", folder / "page.html"]
                commands["--help"] = ["--help"]
            for label, command in commands.items():
                results.append((label, backend, *measure(command, store, options.rounds)))
    print(f"{'command':20} {'backend':8} {'processor s':>12} {'wall s':>8}")
    for label, backend, processor, wall in results:
        print(f"c3 {label:17} {backend:8} {processor:12.2f} {wall:8.2f}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
