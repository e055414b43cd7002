"""Leave out the test captions that equal a train caption up to case and punctuation: methods that
retrieve train captions can return these word by word.

    python benchmarks/known_captions.py c3-store -o c3-unknown
    c3 ablate-captions --methods CLIPRe,DeCap,C3-retrieval,C3 --size tiny --sigma 0.08 --beams 5
    c3 ablate-captions --methods CLIPRe,DeCap,C3-retrieval,C3 --size tiny --sigma 0.08 --beams 5 \
        --store c3-unknown    # with the decoders of the first table

The photos stay, with their other captions as references. Takes a minute on 40,000 captions; of
Flickr8k it should leave out 62 captions of 58 photos.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import c3tools
from c3tools import Store


def main() -> None:
    """Copy the store, and leave these captions out of the copy."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    store = Store.open(arguments.store)
    test_texts = store.load("text", "test")
    photo_of = dict(zip(test_texts.keys, test_texts.items, strict=True))

    known: list[str] = []
    for group in c3tools.find_duplicates(store, modality=["text"]).groups:
        if group.tier != "exact" or "train" not in group.splits:
            continue
        for key in (group.kept, *(copy.key for copy in group.copies)):
            if key in photo_of:
                known.append(key)
    photos = {photo_of[key] for key in known}
    shutil.copytree(store.path, arguments.output)
    reason = "equals a train caption"
    c3tools.leave_out(arguments.output, keys=known, modality="text", reason=reason)
    print(f"{len(known)} test captions of {len(photos)} photos are left out in {arguments.output}")


if __name__ == "__main__":
    main()
