"""Make the captioner that c3tools bundles for c3-mini, from captions alone.

    python captioner.py flickr8k c3-mini-captioner --captions coco/val2017.jsonl
    flickr30k/captions.jsonl

1. Texts: the captions of the train split of Flickr8k and those of the files are embedded by c3-mini
   (minutes on two cores). Captions of photos that a captioner is tested on are left out: those of
   Flickr8k's val and test splits, of the bundled photos, and of the rows that a file marks
   (`MARKS`); and so is every sentence that equals one of them.
2. A decoder learns from them (`c3 train-decoder`, the preset c3 with the means of c3-mini). The
   checkpoint is chosen on the texts of Flickr8k's val split; no photo is looked at. Hours,
   depending on the size.
3. It is scored on the photos of Flickr8k's val split, or with ``--split test`` of its test split,
   and on the bundled photos: those of the splits train and val, whose captions c3-mini did not
   learn from either, and those of test.
4. OUT gets the decoder with float16 weights, and a card.

Texts, decoders and photos are kept in a work folder; the same command continues after what is
there, and other settings of the decoder make another one beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from corpora import json_lines

from c3tools import Captioner, Store, embed, evaluate_captions, load_means, train_captioner
from c3tools.assets.paths import PHOTOS
from c3tools.captioning.evaluate_captions import Evaluation
from c3tools.captioning.tokenizer import clean_caption
from c3tools.io.files import write_text_atomically
from c3tools.reporter import Reporter
from c3tools.terminal import TerminalReporter

MARKS = ("has_photo_in_coco_cc", "has_photo_in_coco_cc_more", "reserved")
MOST_BYTES = 20_000_000  # of the weights in the package
Row = dict[str, Any]


def main() -> None:
    """Run the steps, write the captioner."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "pairs",
        type=Path,
        help="folder of Flickr8k: captions.jsonl (image, captions, split), photos",
    )
    parser.add_argument("out", type=Path, help="folder of the captioner")
    parser.add_argument(
        "--captions", type=Path, nargs="*", default=[], help="files of captions without photos"
    )
    parser.add_argument("--size", default="small", help="of the decoder")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the size"
    )
    parser.add_argument("--sigma", default="0.08")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--beams", type=int, default=5, help="of the second score; the first is greedy"
    )
    parser.add_argument(
        "--split", default="val", choices=["val", "test"], help="photos of Flickr8k to score on"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("c3-mini-captioner-work"), help="where the steps are kept"
    )
    parser.add_argument(
        "--texts-only", action="store_true", help="stop when the texts are embedded"
    )
    arguments = parser.parse_args()
    reporter = TerminalReporter()
    texts = embed_texts(arguments.pairs, arguments.captions, arguments.work, reporter)
    if arguments.texts_only:
        return
    settings = {
        name: getattr(arguments, name) for name in ("size", "set", "sigma", "epochs", "seed")
    }
    captioner = train(texts, settings, arguments.work, reporter)
    half = arguments.work / f"{decoder_name(settings)}-float16"
    captioner.save(half, dtype="float16")  # what is scored is what is shipped
    weights = (half / "weights.safetensors").stat().st_size
    print(f"{weights / 1e6:.1f} MB of weights; at most {MOST_BYTES / 1e6:.0f} MB are bundled")
    scores = score(
        half, arguments.pairs, arguments.split, arguments.beams, arguments.work, reporter
    )
    captioner.save(arguments.out, dtype="float16")
    write_text_atomically(arguments.out / "README.md", card(captioner, texts, scores, weights))
    print("\n".join(score_lines(scores)))


def training_rows(pairs: Path, files: Sequence[Path]) -> list[Row]:
    """Return rows of image, captions and split: to learn from (``train``), and to choose the
    checkpoint on (``val``).

    See step 1 of the module's docstring for what is left out.
    """
    own, others = (
        list(json_lines(pairs / "captions.jsonl")),
        [row for file in files for row in json_lines(file)],
    )
    marked = [row for row in others if any(row.get(mark) for mark in MARKS)]
    bundled = list(json_lines(PHOTOS / "captions.jsonl"))
    scored = [row for row in own if row["split"] in ("val", "test")]
    held_out = {
        sentence(caption) for row in [*scored, *marked, *bundled] for caption in row["captions"]
    }
    photos = {Path(row["image"]).stem for row in [*marked, *bundled]}
    rows = []
    for row in [*(row for row in own if row["split"] == "train"), *others]:
        captions = [caption for caption in row["captions"] if sentence(caption) not in held_out]
        if captions and Path(row["image"]).stem not in photos:
            rows.append({"image": row["image"], "captions": captions, "split": "train"})
    return rows + [
        {name: row[name] for name in ("image", "captions", "split")}
        for row in own
        if row["split"] == "val"
    ]


def sentence(caption: str) -> str:
    """Return a caption as the decoder learns it, which is how two captions are compared."""
    return clean_caption(caption).lower()


def embed_texts(pairs: Path, files: Sequence[Path], work: Path, reporter: Reporter) -> Store:
    """Embed the texts to learn from, with the means of c3-mini's own training data, which Collapse
    needs.
    """
    path = work / "texts.jsonl"
    write_rows(path, training_rows(pairs, files))
    store = embed(path, work / "texts", model="c3-mini", prune=True, reporter=reporter)
    load_means(store, "c3-mini")
    train, val = store.count("text", "train"), store.count("text", "val")
    print(f"{store.path}: {train:,} captions to learn from, {val:,} to choose the checkpoint on")
    return store


def decoder_name(settings: Row) -> str:
    """Return the folder of the decoder of these settings."""
    return (
        f"decoder-{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]}"
    )


def train(texts: Store, settings: Row, work: Path, reporter: Reporter) -> Captioner:
    """Train the decoder, or continue, or read the one that is there."""
    return train_captioner(
        texts, output=work / decoder_name(settings), preset="c3", reporter=reporter, **settings
    )


def score(
    decoder: Path, pairs: Path, split: str, beams: int, work: Path, reporter: Reporter
) -> dict[str, Evaluation]:
    """Score the captioner on Flickr8k's photos of a split and on the bundled ones, greedy and with
    beams.
    """
    sets = {
        f"Flickr8k {split}": (pairs, lambda row: row["split"] == split),
        "bundled photos, train and val": (PHOTOS, lambda row: row["split"] != "test"),
        "bundled photos, test": (PHOTOS, lambda row: row["split"] == "test"),
    }
    scores = {}
    for name, (corpus, chosen) in sets.items():
        listed = work / f"{name.lower().replace(', ', '-').replace(' ', '-')}.jsonl"
        write_rows(listed, filter(chosen, json_lines(corpus / "captions.jsonl")))
        folder = corpus / "images" if (corpus / "images").is_dir() else corpus
        store = embed(
            listed,
            listed.with_suffix(""),
            image_column="image",
            images_root=folder,
            reporter=reporter,
        )
        for number in (1, beams):
            how = "greedy" if number == 1 else f"{number} beams"
            scores[f"{name}, {how}"] = evaluate_captions(
                store, decoder=decoder, split="all", beams=number, reporter=reporter
            )
    return scores


def score_lines(scores: dict[str, Evaluation]) -> list[str]:
    """Return one line of a table for each score: CIDEr with its 95% interval over images,
    BLEU-4.
    """
    lines = ["| photos | CIDEr | 95% interval | BLEU-4 |", "|---|---|---|---|"]
    for name, found in scores.items():
        cider, bleu = found.scores["CIDEr"], found.scores["BLEU-4"]
        ends = "{:.1f} to {:.1f}".format(*found.intervals["CIDEr"])
        lines.append(f"| {name} ({len(found.captions):,}) | {cider:.1f} | {ends} | {bleu:.1f} |")
    return lines


def card(captioner: Captioner, texts: Store, scores: dict[str, Evaluation], weights: int) -> str:
    """Return the card of the captioner."""
    record = captioner.to_dict()
    captions = record["captions"]
    lines = [
        "# The captioner of c3-mini",
        "",
        "A decoder that writes captions from embeddings of `c3-mini`. It learned from captions "
        "alone, by the method of "
        "“Connect, Collapse, Corrupt” (ICLR 2024), and never saw an image. `c3 caption` and "
        '`c3tools.Captioner.load("c3-mini")` use it.',
        "",
        "| | |",
        "|---|---|",
        f"| decoder | size "
        f"{record['size']}{''.join(f', {change}' for change in record['changes'])}; "
        f"{record['parameters'] / 1e6:.1f} million parameters, {weights / 1e6:.1f} MB as float16 |",
        f"| training | {captions['train']:,} captions: Flickr8k's train split, Flickr30k, COCO "
        f"val2017; sigma "
        f"{record['sigma']:g}, {len(record['history'])} epochs, seed {record['seed']}; the "
        f"checkpoint chosen on the "
        f"{captions['val']:,} captions of Flickr8k's val split |",
        "| not trained on | captions of the photos of Flickr8k val and test, of the bundled "
        "photos and of the rows of "
        "COCO val2017 marked as held out, nor any sentence that equals one of them |",
        "| made by | `examples/c3_mini/captioner.py` in the repository |",
        "| licence | The captions of Flickr8k and Flickr30k are for research, those of COCO CC BY "
        "4.0. For research, "
        "demonstration and tests, as `c3-mini`. |",
        "",
        "The encoder `c3-mini` itself learned from captions of the same sources, and from the "
        "photos of Flickr8k's "
        "train split.",
        "",
        *score_lines(scores),
        "",
    ]
    return "\n".join(lines)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines, whole or not at all."""
    write_text_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    main()
