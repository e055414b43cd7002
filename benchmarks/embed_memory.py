"""Measure the peak memory of `c3 embed` as the corpus grows, and that of clip-retrieval with the same model.

    python benchmarks/embed_memory.py IMAGES captions.jsonl --peer ../clip-retrieval/bin/clip-retrieval

Growth is measured with the bundled model (2,000 and 40,000 captions, 500 and 5,000 photos). The comparison uses
ViT-B/32 with random weights, 500 photos and 500 captions. ``process`` is the peak resident memory of the main process.
``with workers`` is the peak of it and its child processes together, with shared pages counted once.

Takes about 8 minutes on 2 cores. ``process`` should grow by less than 100 MiB, and stay below the memory of
clip-retrieval.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from embed_texts import read_captions
from measuring import MODEL, Run, c3_embed, clip_retrieval, copy_files, peer_option, print_table, random_weights


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    """Make one run after another, and print each row as soon as it is measured, then the table."""
    rows: list[tuple[str, str, str, str]] = []
    captions = read_captions(arguments.captions, 40_000)
    photos = sorted(arguments.images.iterdir())
    inputs: dict[str, tuple[Path, int]] = {}
    for count in (500, 2_000, len(captions)):
        inputs[f"{count:,} captions"] = (folder / f"{count}.txt", count)
        (folder / f"{count}.txt").write_text("\n".join(captions[:count]) + "\n", encoding="utf-8")
    for count in (500, min(5_000, len(photos))):
        inputs[f"{count:,} photos"] = (copy_files(photos[:count], folder / f"photos-{count}"), count)

    def row(who: str, what: str, done: Run) -> None:
        rows.append((who, what, f"{done.peak_mib:,.0f}", f"{done.tree_mib:,.0f}"))
        print(*rows[-1], sep="\t", flush=True)

    names = [name for name in inputs if name != "500 captions"]
    for name in names:
        _, done = c3_embed(inputs[name][0], folder / f"store-{name}", ["--model", "c3-mini"])
        row("c3 embed, c3-mini", name, done)
    weights = random_weights(folder / "weights.pt")
    for kind, name in (("image", "500 photos"), ("text", "500 captions")):
        _, done = c3_embed(inputs[name][0], folder / f"large-{kind}", ["--model", f"{MODEL}/{weights}"])
        row(f"c3 embed, {MODEL}", name, done)
        if arguments.peer:
            source = inputs[name][0]
            if kind == "text":
                source = folder / "texts"
                source.mkdir()
                for number, caption in enumerate(captions[:500]):
                    (source / f"{number:04d}.txt").write_text(caption, encoding="utf-8")
            _, done = clip_retrieval(arguments.peer, source, folder / f"peer-{kind}", weights, kind)
            row(f"clip-retrieval, {MODEL}", name, done)
    print_table(("", "corpus", "process, MiB", "with workers, MiB"), rows)


def main() -> None:
    """Parse, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("captions", type=Path)
    peer_option(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        measure(arguments, Path(temporary))


if __name__ == "__main__":
    main()
