"""`c3 train-decoder`, `caption`, `evaluate-captions`, `ablate-captions` and `demo`: captions from
embeddings, and their scores.

For ``**options`` and what is returned, see __init__.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import c3tools
from c3tools.io.locations import is_url
from c3tools.reporter import counted

from ._ablation import list_methods, print_ablation
from ._console import SHORT, lines_for_dash, message, out, print_table, reporter, write_json
from ._derive import Outcome


def train_decoder(**options: Any) -> Any:
    """Train a caption decoder on text embeddings alone.

    If you have a few image–caption pairs, train on texts first, then train again with --from
    c3-decoder --pairs 0.01 -o tuned. Run the same command again to continue an interrupted run. To
    replace a decoder that has other settings, add --overwrite.
    """
    decoder = c3tools.train_captioner(**options, reporter=reporter())
    print_table(decoder.losses())
    folder = options["output"]
    message(f"Wrote the decoder to {folder}/. Next: c3 caption PATH, or c3 evaluate-captions.")
    return decoder.to_dict()


def caption(
    paths: Sequence[str] = (), *, json: str | None = None, strict: bool = False, **options: Any
) -> Any:
    """Caption images or embeddings with a trained decoder.

    Images are encoded with the model that the decoder was trained for. Captions are saved one by
    one. Run the same command again to continue an interrupted run; existing captions are kept.

    Unreadable files are listed, and the others are captioned. The exit code is 1 if no file can be
    read; with --strict, if any file cannot be read.

    Args:
        paths: Images and folders of images; - reads paths from standard input, one per line.
        strict: Exit with code 1 if any file could not be read.
    """
    file = None if json in (None, "-") or is_url(json) else json
    result = c3tools.caption_images(
        lines_for_dash(paths), **options, json=file, reporter=reporter()
    )
    if not file:
        write_json(result.to_dict()["captions"], json)
    if result.captions:
        print_table(result.table(), SHORT if result.files else None)
    for failure in result.failures:
        message(f"Could not read {failure.path}: {failure.error}: {failure.message}")
    written = [name for name in (result.files, str(options["html"] or "")) if name]
    if written:
        message(f"Wrote {' and '.join(written)}")
    if result.failures:
        files = counted(len(result.failures) + len(result.captions), "file")
        message(f"{len(result.failures):,} of {files} could not be read. They are listed above.")
    is_error = bool(result.failures) and (strict or not result.captions)
    return Outcome(None, int(is_error))


def evaluate_captions(
    *,
    coco: str | Path | None = None,
    **options: Any,
) -> Any:
    """Caption the test images and score the captions.

    Scores are in percent. The images are captioned from their embeddings in the store. To score
    another program's captions instead, use --captions.

    Args:
        coco: Also write the captions to this file, in COCO's results format.
    """
    from c3tools.captioning.references import coco_results

    result = c3tools.evaluate_captions(**options, reporter=reporter())
    if coco:
        write_json(coco_results(result.captions), str(coco))
    print_table(result.table())
    for note in result.notes:
        message(note)
    return result.to_dict()


def ablate_captions(*, list_all: bool = False, **options: Any) -> Any:
    """Train and score captioning methods, in one table.

    Each method is trained with several seeds; scores are in percent. Finished results and trained
    decoders are kept. Run the same command again to continue, or to add methods, seeds, sigmas or
    other decoding options (such as --beams).

    Args:
        list_all: List the methods and exit.
    """
    if list_all:
        from c3tools.paper.ablation.methods import METHODS

        return list_methods(METHODS)
    return print_ablation(
        c3tools.ablate_captions(**options, reporter=reporter()), options["output"]
    )


def demo(*, photos_to: Path | None = None, **options: Any) -> Any:
    """Caption photos and compare methods, offline.

    Within a minute, OUTPUT/captions.html shows captions by the bundled captioner. Then four
    decoders are trained and compared; OUTPUT/demo.html shows their scores and captions.

    Args:
        photos_to: Only copy the bundled photos to this folder.
    """
    if photos_to is not None:
        message(f"Copied {c3tools.copy_photos(photos_to)} photos with captions to {photos_to}.")
        return None
    result = c3tools.run_demo(**options, reporter=reporter())
    print_table(result.table())
    for note in result.ablation.notes:
        out.print(note)
    message(f"The page with the table, the photos and their captions is {result.page}")
    if result.images is not None:
        for table in result.images.tables():
            print_table(table)
        for note in result.images.notes:
            out.print(note)
        message(f"The images generated from captions are in {options['output']}/images/table.html")
    return result.to_dict()["runs"]
