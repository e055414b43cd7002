"""Time whole commands of two commits side by side, and compare their peak memory.

    python benchmarks/same_speed.py --before 2c54937                       # against the working
    tree python benchmarks/same_speed.py --before 2c54937 --rows 100000 --only help,caption,report
    python benchmarks/same_speed.py --after HEAD --rows 10000000 --only plan

Both commits run each command in turn, A B A B …, on the installed versions of everything else and
with all cores. Printed are the medians of `--rounds` runs, the ratio of speeds (above 1: the
working tree is faster), and the peak memory of the main process. The photos are those of Flickr8k
where the development data is there, else copies of the bundled ones; the store of `--rows` rows of
512 dimensions, half images and half captions, is imported from arrays.

With a million rows it takes half an hour and 6 GB of disk. No ratio should be below 0.95, the
report should take at most 2 GiB, and planning to embed ten million captions at most 3 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from same_results import ROOT, Commit

FLICKR = ROOT.parent / "shared" / "data" / "flickr8k" / "images"
BUNDLED = ROOT / "c3tools" / "assets" / "coco-cc"
PHOTO = BUNDLED / "images" / "000000000285.jpg"
NEW = "--store new"  # a store that is removed before each run
CASES = {
    "help": "--help",
    "embed one photo": f"embed {PHOTO} {NEW}",
    "caption one photo": f"caption {PHOTO}",
    "embed photos with c3-mini": f"embed photos {NEW}",
    "embed photos with ViT-B-32": f"embed few {NEW} --model ViT-B-32 --random-init 0",
    "embed texts with c3-mini": f"embed texts.jsonl {NEW}",
    "plan": "embed captions/*.parquet --dry-run",
    "import": (
        "import --store new --model ViT-B-16/openai --image image.npy --text text.npy "
        "--meta meta.jsonl"
    ),
    "means": "means show --store large",
    "report": "gap-report --store large",
    "export": "export --store large --preset c3 --sigma 0.1 -o new",
    "train a decoder": "train-decoder --sigma 0.1 --size tiny --epochs 40 -o new --overwrite",
    "train a generator": "train-generator --sigma 0.1 --steps 30 -o new --overwrite",
    "search": "search dog",
}


def lay_out(work: Path, captions: int, vectors: int) -> None:
    """Write the inputs that both commits read."""
    photos = (
        sorted(FLICKR.iterdir())[:2000]
        if FLICKR.is_dir()
        else sorted((BUNDLED / "images").iterdir()) * 8
    )
    for name, count in (("photos", 2000), ("few", 200)):
        (work / name).mkdir()
        for number, photo in enumerate(photos[:count]):
            shutil.copyfile(photo, work / name / f"{number:04d}.jpg")
    texts = [
        text
        for line in (BUNDLED / "captions.jsonl").open()
        for text in json.loads(line)["captions"]
    ]
    lines = (
        json.dumps({"key": f"{n}", "caption": f"{texts[n % len(texts)]} {n}"})
        for n in range(20_000)
    )
    (work / "texts.jsonl").write_text("".join(line + "\n" for line in lines))
    (work / "captions").mkdir()
    for number in range(10):
        numbers = range(number * captions // 10, (number + 1) * captions // 10)
        written = [
            f"a photo of thing {n} beside another thing, on a sunny afternoon" for n in numbers
        ]
        pq.write_table(pa.table({"caption": written}), work / "captions" / f"{number}.parquet")
    draw, items = np.random.default_rng(0), vectors // 2
    for name in ("image", "text"):
        rows = np.empty((items, 512), np.float16)
        for start in range(0, items, 50_000):
            block = rows[start : start + 50_000]
            block[:] = draw.normal(size=block.shape) + (1.0 if name == "image" else -1.0)
        np.save(work / f"{name}.npy", rows)
    split = ("train", "train", "train", "val", "test")
    rows_of = (
        json.dumps({"id": f"i{n:07d}", "caption": f"thing {n}", "split": split[n % 5]})
        for n in range(items)
    )
    (work / "meta.jsonl").write_text("".join(line + "\n" for line in rows_of))


def timed(commit: Commit, command: str) -> tuple[float, float]:
    """Run a command of a commit in its project folder; return the seconds it took and its peak
    memory in MiB.
    """
    if not (commit.source / "c3tools" / "cli" / "means.py").exists():
        # a commit in which the means were shown without a further word
        command = command.replace("means show", "means")
    for name in ("new", ".new.run", "new.previous"):
        shutil.rmtree(commit.project / name, ignore_errors=True)
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("C3_", "OPENBLAS_"))
    }
    environment |= {"PYTHONPATH": str(commit.source), "C3_CACHE": str(commit.project / "cache")}
    words = [sys.executable, "-P", "-c", "from c3tools.cli import main; main()", *command.split()]
    with (commit.project / "output.txt").open("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            words, cwd=commit.project, env=environment, stdout=output, stderr=output
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            output.seek(0)
            sys.exit(f"{commit.name}: c3 {command} failed:\n{output.read()[-3000:]}")
    return seconds, usage.ru_maxrss / 1024


def main() -> None:
    """Lay out the inputs, run all cases with both commits, and print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", default="2c54937")
    parser.add_argument("--after", help="a commit; the working tree by default")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help=f"of {', '.join(CASES)}; separated by commas")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else list(CASES)
    with tempfile.TemporaryDirectory(prefix="same-speed-") as folder:
        work = Path(folder)
        vectors = options.rows if {"import", "means", "report", "export"} & set(chosen) else 10
        lay_out(work, options.rows if "plan" in chosen else 10, vectors)
        commits = [Commit("before", options.before, work), Commit("after", options.after, work)]
        for commit in commits:
            for name in (
                "photos",
                "few",
                "captions",
                "texts.jsonl",
                "image.npy",
                "text.npy",
                "meta.jsonl",
            ):
                (commit.project / name).symlink_to(work / name)
            timed(commit, f"embed {BUNDLED}")
            timed(commit, "index")
            if {"means", "report", "export"} & set(chosen):
                timed(commit, CASES["import"].replace("--store new", "--store large"))
        print(f"{'':26}{'before':>10}{'after':>10}{'ratio':>8}{'MiB before':>12}{'MiB after':>11}")
        for case in chosen:
            runs = [
                [timed(commit, CASES[case]) for commit in commits] for _ in range(options.rounds)
            ]
            before, after = (statistics.median(run[side][0] for run in runs) for side in (0, 1))
            peaks = [max(run[side][1] for run in runs) for side in (0, 1)]
            times = f"{before:9.2f}s{after:9.2f}s{before / after:8.2f}"
            print(f"{case:26}{times}{peaks[0]:12,.0f}{peaks[1]:11,.0f}", flush=True)


if __name__ == "__main__":
    main()
