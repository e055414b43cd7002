"""Check that no caption of a test photo is among the texts that the captioner of c3-mini learned from.

    python check_texts.py c3-mini-captioner-work/texts flickr8k/captions.jsonl:test coco_cc/captions.jsonl

Pass files of photos with their captions; ``:SPLIT`` selects the rows of one split. Captions are compared by their
letters and digits alone, in lower case, and photos by the numbers that their file names begin with. Takes seconds, and
exits with 1 if a caption or a photo is found. The script shares no code with `captioner.py`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from c3tools import Store


def main(store: str, *files: str) -> int:
    """Print what is found for each file; return the exit code."""
    rows = Store.open(store).load("text", "train")
    captions, photos = {letters(caption) for caption in rows.captions}, {number(key) for key in rows.items}
    found = 0
    for name in files:
        path, _, split = name.partition(":")
        tested = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        tested = [row for row in tested if not split or row["split"] == split]
        own = [caption for row in tested for caption in row["captions"]]
        seen = [caption for caption in own if letters(caption) in captions]
        known = [row["image"] for row in tested if number(row["image"]) in photos]
        print(f"{name}: {len(tested):,} photos, {len(own):,} captions; among {len(rows):,} training texts", end="")
        print(f" {len(seen):,} of these captions {seen[:3]}, texts of {len(known):,} of these photos {known[:3]}")
        found += len(seen) + len(known)
    return int(found > 0)


def letters(caption: str) -> str:
    """Return the letters and digits of a caption, in lower case, with single spaces between words."""
    return " ".join(re.findall(r"\w+", caption.lower()))


def number(name: str) -> str:
    """Return the number that the name of a photo begins with, which Flickr8k and Flickr30k share."""
    return re.match(r"\d*", Path(name).name)[0].lstrip("0") or name  # type: ignore[index]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
