"""Embed a thousand good photos among all kinds of broken files, and check what is embedded and what is listed.

    python benchmarks/hostile_corpus.py FOLDER

The first 1,000 photos in FOLDER are copied; the broken and unusual files come from `tests/embedding/hostile.py`. Run it
from the root of the repository. Takes a minute on 2 cores. It should print 1,000 of 1,000 and no difference.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from measuring import c3_embed, print_table

from c3tools import Store

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.embedding.hostile import write_hostile_files


def main() -> None:
    """Embed, compare with what is expected."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "corpus"
        folder.mkdir()
        photos = sorted(arguments.folder.iterdir())[:1000]
        for photo in photos:
            shutil.copyfile(photo, folder / photo.name)
        odd, bad = write_hostile_files(folder, photos[0])
        result, done = c3_embed(folder, Path(temporary) / "store", ["--model", "c3-mini"])
        store = Store.open(Path(temporary) / "store")
        keys = set(store.load("image").keys)
        failures = {failure.key: failure for failure in store.recorded_failures()}
    print_table(
        ("listed", "stage", "error", "message"),
        [(repr(key), failure.stage, failure.error, failure.message[:80]) for key, failure in failures.items()],
    )
    good = {photo.stem for photo in photos}
    print(f"{len(good & keys):,} of {len(good):,} photos and {len(odd & keys)} of {len(odd)} odd files embedded")
    print(f"{len(failures)} listed, {len(bad)} expected; the summary counts {result['failures_in_store']}")
    differences = keys ^ (good | odd), {key: (f.stage, f.error) for key, f in failures.items()} != bad
    print("no difference" if differences == (set(), False) else f"DIFFERENT: {differences}", f"({done.seconds:.0f} s)")


if __name__ == "__main__":
    main()
