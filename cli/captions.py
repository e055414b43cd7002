"""`c3 train-decoder`, `caption`, `evaluate`, `ablate` and `demo`: captions from embeddings, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import c3tools
from c3tools.errors import CorpusError
from c3tools.io.locations import is_url
from c3tools.tables import Table

from ._console import message, out, print_table, reporter, write_json

SHOWN = 20  # rows of the printed table if the captions are also in a file


def train_decoder(*, json: str | None = None, **options: Any) -> None:
    """Train the caption decoder on transformed text embeddings alone, and write it to c3-decoder/.

    If you have a few pairs, train on texts first, then run it again with --from c3-decoder --pairs 0.01 -o tuned. Run
    the same command again to continue an interrupted training. --overwrite replaces a decoder of other settings.
    """
    from c3tools.captioning.curves import CURVES_FILE

    captioner = c3tools.train_captioner(**options, reporter=reporter())
    record = captioner.to_dict()
    if write_json(record, json):
        best, start, rows = record["best_val_loss"], record["start_val_loss"], []
        if start is not None:
            rows.append(["before", "", f"{start:.3f}{' (kept)' if start == best else ''}", ""])
        for epoch in record["history"]:
            val = f"{epoch['val_loss']:.3f}{' (kept)' if epoch['val_loss'] == best else ''}"
            rate = epoch["tokens"] / max(epoch["seconds"], 1e-9)
            rows.append([str(epoch["epoch"]), f"{epoch['train_loss']:.3f}", val, f"{rate:,.0f}"])
        print_table(Table(["epoch", "training loss", "validation loss", "tokens/s"], rows))
    folder = options["output"]
    message(
        f"Wrote the decoder to {folder}/ and its losses to {folder}/{CURVES_FILE}. Next: c3 caption PATH, or c3 "
        "evaluate."
    )


def caption(paths: Sequence[str] = (), *, json: str | None = None, **options: Any) -> None:
    """Caption images, or embeddings, with a trained decoder.

    The images are encoded with the model that the decoder was trained for. Each caption is written as soon as it is
    made. Run the same command again to continue an interrupted run: existing captions are kept.
    """
    in_file = json is not None and json != "-" and not is_url(json)
    result = c3tools.caption_images(paths, **options, json=json if in_file else None, reporter=reporter())
    if (in_file or write_json(result.to_dict()["captions"], json)) and result.captions:
        rows = list(result.captions.items())
        shown = rows[:SHOWN] if result.files else rows
        print_table(Table(["image", "caption"], shown, left=["image", "caption"]))
        if len(shown) < len(rows):
            message(f"... and {len(rows) - len(shown):,} more.")
    for path, reason in result.failures:
        message(f"Could not read {path}: {reason}")
    written = [name for name in (result.files, str(options["html"] or "")) if name]
    if written:
        message(f"Wrote {' and '.join(written)}")
    if result.failures:
        total = len(result.failures) + len(result.captions)
        raise CorpusError(
            f"{len(result.failures)} of {total} files could not be read as images. They are named above.",
            remedy="The other images have captions. Replace or remove these files.",
        )


def evaluate(
    *,
    coco: str | Path | None = None,
    images: str | Path | None = None,
    encoder: Sequence[str] = (),
    inception: str | Path | None = None,
    download: bool = False,
    json: str | None = None,
    **options: Any,
) -> None:
    """Caption the test images of the store and score the captions, in percent.

    The images are captioned from their embeddings. With --images, generated images are compared with the photos of the
    store instead.

    Args:
        coco: Also write the captions to this file, in COCO's results format.
        images: Score this folder of images, made by c3 generate.
        encoder: With ``images``: also score with the features of this model.
        inception: With ``images``: Inception weights, for the standard FID and IS.
        download: With ``images``: download photos that are given by URL.
    """
    if images is not None:
        shared = {name: options[name] for name in ("store", "split", "device", "backend", "precision")}
        scored = c3tools.evaluate_images(
            images, **shared, encoder=encoder, inception=inception, download=download, reporter=reporter()
        )
        if write_json(scored.to_dict(), json):
            print_table(scored.table())
            if scored.nearest:
                copied = "" if scored.copied is None else f"; {scored.copied:.1%} are nearer than 99 % of real photos"
                rows = [[near["file"], near["photo"], f"{near['cosine']:.3f}"] for near in scored.nearest[:3]]
                title = f"Images nearest to a training photo{copied}"
                print_table(Table(["image", "photo", "cosine"], rows, title=title, left=["photo"]))
        for note in scored.notes:
            message(note)
        return
    from c3tools.metrics.files import coco_results

    result = c3tools.evaluate_captions(**options, reporter=reporter())
    if coco:
        write_json(coco_results(result.captions), str(coco))
    if write_json(result.to_dict(), json):
        print_table(result.table())
    for note in result.notes:
        message(note)


def ablate(
    *,
    sigma: Sequence[str] = ("0.1",),
    train_fraction: Sequence[float] = (1.0,),
    list_all: bool = False,
    json: str | None = None,
    **options: Any,
) -> None:
    """Compare methods: train and score each with several seeds, and print one table in percent.

    With --task images, generators are trained on the photos alone. Each then makes an image from a caption of every
    test photo, and the images are scored (C1, C2_1, C2_2, C3, LAFITE, oracle). Training a tiny generator takes about 17
    minutes on one core with AVX-512 bf16, and an hour or more on one without.

    Finished results are kept. Run the same command again to continue, or add methods, seeds or sigmas to the table.

    Args:
        list_all: List the methods and exit.
    """
    if list_all:
        print_table(_methods())
        return
    result = c3tools.ablate(**options, sigma=sigma, train_fraction=train_fraction, reporter=reporter())
    if write_json(result.to_dict()["runs"], json):
        for table in result.tables():
            print_table(table)
        for note in [*result.notes, *result.remarks]:
            out.print(note, highlight=False)
        out.print("\nThese commands make the rows:", highlight=False)
        for command in result.commands:
            out.print(command, style="dim", highlight=False, markup=False, soft_wrap=True)
    message(f"Wrote {options['output']}/table.md and {options['output']}/table.html")


def _methods() -> Table:
    from c3tools.ablation import IMAGE_METHODS, METHODS

    rows = [["captions", name, m.learns_from, "sigma" if m.noisy else "none", m.summary] for name, m in METHODS.items()]
    rows += [["images", name, "image", "sigma" if m.noisy else "none", m.summary] for name, m in IMAGE_METHODS.items()]
    columns = ["task", "method", "learns from", "noise", "description"]
    return Table(columns, rows, left=columns)


def demo(*, photos_to: Path | None = None, json: str | None = None, **options: Any) -> None:
    """Caption the bundled photos, then run the whole method on them, offline.

    The captions of the bundled captioner are in OUT/captions.html within a minute. Then four decoders are trained and
    compared; their scores and captions are in OUT/demo.html.

    Args:
        photos_to: Only copy the bundled photos to this folder.
    """
    if photos_to is not None:
        count = c3tools.copy_photos(Path(photos_to))
        message(f"Copied {count} photos with captions to {photos_to}.")
        return
    result = c3tools.run_demo(**options, reporter=reporter())
    if write_json(result.to_dict()["runs"], json):
        print_table(result.table())
        for note in result.ablation.notes:
            out.print(note, highlight=False)
        if result.images is not None:
            for table in result.images.tables():
                print_table(table)
            for note in result.images.notes:
                out.print(note, highlight=False)
    message(f"The page with the table, the photos and their captions is {result.page}")
    if result.images is not None:
        message(f"The images that were generated from captions are in {options['out']}/images/table.html")
