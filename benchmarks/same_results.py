"""Check that two commits of c3tools give a user the same results, to show that a restructuring
changed no behaviour.

    python benchmarks/same_results.py --before 2c54937               # against the working tree
    python benchmarks/same_results.py --before 2c54937 --after HEAD

Runs the same commands with both, on the installed versions of everything else, with one thread, in
fp32 on the CPU: on the bundled photos, and on the two sets of real CLIP embeddings of the
development data (left out where these are not there). Compared are values, never layouts: the
numbers of gap reports and of pairs, all presets applied to embeddings, exports, captions, scores,
the results of a search, and the losses of a decoder and a generator that are trained for a few
steps. A number may differ by `CLOSE`, a loss by `LOSS`, and a measure of a sample by its own
interval.

Takes 8 minutes of processor time. It should end with "0 differ" and exit with 0.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CLIP_SETS = ROOT.parent / "shared" / "data" / "clip_embeddings"
CLOSE = 1e-6  # of numbers that moments or rows decide, relative to numbers above one
LOSS = 1e-3
CPU = "--device cpu --precision fp32"
ENCODER = f"{CPU} --backend torch"
# keys whose values are no results: times, paths, and sentences
UNTOLD = {
    "seconds",
    "elapsed",
    "rate",
    "timings",
    "path",
    "version",
    "command",
    "time",
    "because",
    "question",
    "rests_on",
}
UNTOLD |= {"why", "notes", "fitted_on", "remarks", "c3tools", "store", "missing"}
# how commits before the present names of commands spell them
FORMER_WORDS = {"evaluate-captions": "evaluate", "--only": "--in"}
Values = dict[str, Any]

APPLY = """
import json, sys
import numpy as np, pyarrow.parquet as pq
import c3tools
store, names, output = c3tools.Store.open(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
rows = {name: store.load(name) for name in ("image", "text")}
arrays = {}
for name in names:
    try:
        pipeline = c3tools.preset(name, sigma=0.1).fit(store)
        for modality, part in rows.items():
            vectors = np.asarray(part.embeddings, dtype="float32")
            keys = [str(key) for key in part.keys]
            arrays[f"{name}/{modality}"] = pipeline.transform(vectors, modality=modality)
            if modality == "text":
                arrays[f"{name}/{modality}/training"] = pipeline.transform(
                    vectors, modality=modality, training=True, keys=keys, seed=0, epoch=3)
    except c3tools.C3Error as error:
        arrays[f"{name}/error"] = np.zeros(1)
np.savez(output, **arrays)
"""
EXPORTED = """
import sys
from pathlib import Path
import numpy as np, pyarrow.parquet as pq
folder, output = Path(sys.argv[1]), sys.argv[2]
arrays = {}
for modality in ("image", "text"):
    tables = [pq.read_table(path) for path in sorted(folder.rglob(f"{modality}/*.parquet"))]
    tables += [pq.read_table(path) for path in sorted(folder.glob(f"{modality}-*.parquet"))]
    rows = {}
    for table in tables:
        rows.update(zip(map(str, table["key"].to_pylist()), table["embedding"].to_pylist()))
    arrays[modality] = np.array([rows[key] for key in sorted(rows)], dtype="float32")
np.savez(output, **arrays)
"""


class Commit:
    """The package of a commit (or of the working tree), and a project folder in which its commands
    run.
    """

    def __init__(self, name: str, ref: str | None, work: Path) -> None:
        self.name, self.source, self.project = name, work / name / "source", work / name / "project"
        self.project.mkdir(parents=True)
        if ref is None:
            for part in ("c3tools", "cli"):
                shutil.copytree(
                    ROOT / part, self.source / part, ignore=shutil.ignore_patterns("__pycache__")
                )
        else:
            archive = subprocess.run(
                ["git", "archive", ref, "c3tools", "cli"], cwd=ROOT, check=True, capture_output=True
            )
            with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
                files.extractall(self.source, filter="data")
        commands = (self.source / "cli" / "_app.py").read_text(encoding="utf-8")
        self.former_words = {} if "evaluate-captions" in commands else FORMER_WORDS
        (self.source / "cli").rename(self.source / "c3tools" / "cli")

    def python(self, code: str, *words: object) -> str:
        """Run Python code with this commit's package, and return what it prints; a failure ends the
        comparison.
        """
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("C3_")
        }
        environment |= {"PYTHONPATH": str(self.source), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        environment |= {"C3_CACHE": str(self.project / "cache")}
        command = [sys.executable, "-P", "-c", code, *map(str, words)]
        done = subprocess.run(
            command, cwd=self.project, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(
                f"{self.name}: {' '.join(map(str, words))[:300]} failed:\n{done.stderr[-3000:]}"
            )
        return done.stdout

    def c3(self, command: str, *paths: object) -> Any:
        """Run `c3 COMMAND PATHS --json`, and return what it prints as JSON."""
        words = [self.former_words.get(word, word) for word in command.split()]
        return json.loads(
            self.python("from c3tools.cli import main; main()", *words, *paths, "--json")
        )

    def arrays(self, code: str, *words: object) -> Values:
        """Run code that writes arrays to the file that its last argument names, and return them."""
        import numpy as np

        path = self.project / "arrays.npz"
        self.python(code, *words, path)
        with np.load(path) as file:
            return dict(file)


def bundled(commit: Commit) -> Iterator[tuple[str, Any, float]]:
    """Embed the bundled photos; report, export, search, caption, score and train on them."""
    photos = ROOT / "c3tools" / "assets" / "coco-cc"
    commit.c3(f"embed {ENCODER}", photos)
    yield "report of the bundled photos", commit.c3("gap-report --seed 0"), CLOSE
    yield "pairs of the bundled photos", commit.c3("pairs"), CLOSE
    presets = [entry["name"] for entry in commit.c3("export --list")]
    yield "presets", presets, 0
    yield (
        "presets on the bundled photos",
        commit.arrays(APPLY, "c3-store", json.dumps(presets)),
        CLOSE,
    )
    commit.c3("export --preset c3 --sigma 0.1 --dtype float32 -o exported")
    yield "export of c3", commit.arrays(EXPORTED, "exported"), CLOSE
    commit.c3("index")
    found = [
        commit.c3("search --device cpu --only image", words)
        for words in ("a dog in the snow", "a red bus")
    ]
    yield (
        "first photos of a search",
        [[hit["key"] for hit in hits_of(answer)] for answer in found],
        0,
    )
    captions = commit.c3(f"caption --beams 1 {ENCODER}", photos)
    yield "captions of the bundled photos", {row["key"]: row["caption"] for row in captions}, 0
    predictions, references = (
        commit.project / "predictions.json",
        commit.project / "references.jsonl",
    )
    predictions.write_text(json.dumps(captions))
    rows = [json.loads(line) for line in (photos / "captions.jsonl").read_text().splitlines()]
    named = [{"key": Path(row["image"]).stem, "captions": row["captions"]} for row in rows]
    references.write_text("".join(json.dumps(row) + "\n" for row in named))
    yield (
        "scores",
        commit.c3(
            "evaluate-captions --resamples 200 --captions", predictions, "--references", references
        ),
        CLOSE,
    )
    trained = commit.c3(
        f"train-decoder --sigma 0.1 --size tiny --epochs 6 --set batch_size=64 {CPU}"
    )
    yield "losses of a decoder", losses(trained), LOSS
    trained = commit.c3(f"train-generator --sigma 0.1 --steps 50 {CPU}")
    yield "losses of a generator", losses(trained), LOSS


def real_clip(name: str) -> Callable[[Commit], Iterator[tuple[str, Any, float]]]:
    """Import a set of real embeddings; report on it and apply all presets to it."""

    def values(commit: Commit) -> Iterator[tuple[str, Any, float]]:
        folder, store = CLIP_SETS / name, f"store-{name}"
        files = ["--image", folder / "image.npy", "--text", folder / "text.npy"]
        commit.c3(
            f"import --store {store} --model ViT-B-16/openai",
            *files,
            "--meta",
            folder / "meta.jsonl",
        )
        yield (
            f"report of {name}",
            commit.c3(f"gap-report --store {store} --split all --seed 0"),
            CLOSE,
        )
        presets = [entry["name"] for entry in commit.c3("export --list")]
        yield f"presets on {name}", commit.arrays(APPLY, store, json.dumps(presets)), CLOSE

    return values


def hits_of(answer: Any) -> list[Any]:
    """Return the hits in the answer to one query, or to the only one of a list."""
    answer = answer[0] if isinstance(answer, list) and answer and "hits" in answer[0] else answer
    return list(answer["hits"] if isinstance(answer, dict) else answer)


def losses(trained: Any) -> list[float]:
    """Return all numbers of a record of training whose name has "loss" in it, in their order."""
    return [
        number
        for name, number in leaves(trained)
        if "loss" in name.lower() and isinstance(number, float)
    ]


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a JSON value with the path that leads to each."""
    if isinstance(value, dict):
        for key in sorted(value):
            if key not in UNTOLD:
                yield from leaves(value[key], f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from leaves(item, f"{name}[{place}]")
    else:
        yield name, value


def compare(before: Any, after: Any, close: float) -> tuple[int, int, list[str]]:
    """Return how many leaves are equal, how many differ within an interval of theirs, and what else
    differs.
    """
    import numpy as np

    equal, within, found = 0, 0, []
    olds, news = dict(leaves(before)), dict(leaves(after))
    ends = {
        re.sub(r"_intervals?|\[[01]\]$", "", name): name[:-3]
        for name in olds
        if re.search(r"_interval.*\[0\]$", name)
    }
    for name, old in olds.items():
        new = news.get(name, "missing")
        if isinstance(old, np.ndarray):
            apart = (
                float(np.abs(old - new).max(initial=0)) if isinstance(new, np.ndarray) else math.inf
            )
            same, text = apart <= close, f"{name}: {apart:.2g} apart"
        elif isinstance(old, float) and isinstance(new, int | float):
            same, text = (
                math.isclose(old, new, rel_tol=close, abs_tol=close),
                f"{name}: {old} before, {new} after",
            )
            interval = ends.get(name)
            if not same and (
                "_interval" in name
                or (interval and olds[f"{interval}[0]"] <= new <= olds[f"{interval}[1]"])
            ):
                within += 1
                continue
        else:
            same, text = old == new, f"{name}: {str(old)[:80]} before, {str(new)[:80]} after"
        equal += same
        found += [] if same else [text]
    return equal, within, found


def main() -> None:
    """Run both commits, compare, and print a table and what differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", default="2c54937")
    parser.add_argument("--after", help="a commit; the working tree by default")
    options = parser.parse_args()
    sets = [
        name
        for name in ("coco_val2017_vitb16_500", "flickr8k_vitb32_combined")
        if (CLIP_SETS / name).is_dir()
    ]
    failed = 0
    with tempfile.TemporaryDirectory(prefix="same-results-") as work:
        before = Commit("before", options.before, Path(work))
        after = Commit("after", options.after, Path(work))
        print(f"{'':45}{'equal':>8}{'within':>8}{'differ':>8}")
        for part in (bundled, *map(real_clip, sets)):
            for (name, old, close), (_, new, _) in zip(part(before), part(after), strict=True):
                equal, within, found = compare(old, new, close)
                failed += len(found)
                print(f"{name:45}{equal:8,}{within:8,}{len(found):8,}", flush=True)
                for text in found[:20]:
                    print(f"    {text}")
    print(f"{failed} differ")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
