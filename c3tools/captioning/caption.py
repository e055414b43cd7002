"""Captions of photos or of image embeddings: the function behind `c3 caption`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import devices
from ..arrays import Matrix
from ..assets.paths import C3_MINI_CAPTIONER
from ..choices import EncoderPrecision, PositiveInt, Steer, checked
from ..corpus.items import (
    AUDIO_SUFFIXES,
    IMAGE_SUFFIXES,
    Corpus,
    Failure,
    ImageItem,
    as_key,
    is_sound,
)
from ..corpus.reading import assign_keys, find_images
from ..embedding.shard_work import EmbedOptions, encoded_images
from ..embedding.sounds import encode_sounds
from ..encoders import Encoder, resolve_encoder
from ..encoders.plugins import find_plugin
from ..errors import (
    CorpusError,
    EncoderError,
    OutputError,
    note_on_interrupt,
    reason_of,
)
from ..executors import cores
from ..inputs.import_embeddings import read_rows
from ..io.artifact import digest_of
from ..io.locations import is_url, location
from ..lists import as_list, positions
from ..reporter import SILENT, Reporter, counted
from ..result_table import Table
from ..store import Rows
from .caption_files import CaptionWriter
from .captioner import Captioner, notes_on_empty_captions
from .generation import GenerationConfig, GenerationOptions

_FEW = 4  # photos that are decoded before a worker process has started
_ROWS = 256  # embeddings captioned at a time; steered ones, which take seconds, one by one
_PHOTOS = 64  # photos captioned at a time


@dataclass(frozen=True)
class _Batch:
    """Embeddings to caption."""

    modality: str
    keys: Sequence[str]
    embeddings: Matrix  # float32 (n, d)
    failures: list[Failure]  # files beside them that cannot be read


@dataclass
class Captions:
    """Captions of image files or embeddings, as `caption_images` returns them.

    Attributes:
        captions: caption by key, in the order the images were found, or the embeddings are in.
        failures: the files that could not be read as images, and why.
        kept: how many of the captions were there before.
        files: the files that contain them, in words; empty if there are none.
    """

    captions: dict[str, str]
    failures: list[Failure]
    kept: int
    files: str

    def table(self) -> Table:
        """Return the captions as `c3 caption` prints them."""
        rows = list(self.captions.items())
        return Table(["image", "caption"], rows, left=["caption"])

    def to_dict(self) -> dict[str, Any]:
        """Return captions and failures as JSON values."""
        return {
            "captions": [
                {"key": key, "caption": caption} for key, caption in self.captions.items()
            ],
            "failures": [
                {"path": one.path, "error": f"{one.error}: {one.message}"} for one in self.failures
            ],
        }


@checked
def caption_images(
    paths: str | Path | Sequence[str | Path] = (),
    *,
    embeddings: str | Path | None = None,
    modality: str = "image",
    array: str | None = None,
    decoder: Captioner | str | Path | None = None,
    json: str | Path | None = None,
    txt: bool = False,
    xmp: bool = False,
    html: str | Path | None = None,
    overwrite: bool = False,
    follow_symlinks: bool = False,
    beams: PositiveInt | None = None,
    length_penalty: float = 0.7,
    top_p: float | None = None,
    temperature: float = 1.0,
    steer: Steer | None = None,
    seed: int = 0,
    model: str | None = None,
    random_init: int | None = None,
    device: str | None = None,
    backend: str = "auto",
    precision: EncoderPrecision = "auto",
    encoder: Encoder | None = None,
    reporter: Reporter = SILENT,
) -> Captions:
    """Caption image files and the images of folders (searched recursively), or embeddings. With an
    audio model, audio files are captioned in the same way.

    Captions are saved one by one, those in ``json`` every few seconds. The same call continues an
    interrupted run, and existing captions are kept. See `c3tools.captioning.caption_files`.

    Args:
        paths: Images, or folders of images.
        embeddings: Embeddings of the same model: a file (npy, npz, pt, safetensors, csv, jsonl,
            parquet) or a store.
        modality: Modality of ``embeddings``: image or text.
        array: The array, tensor or column to read from the file of ``embeddings``, or the modality
            to read from a store (by default ``modality``).
        decoder: The folder of a trained decoder, hf-hub:ORG/NAME, or c3-mini (bundled). By default
            c3-decoder if that folder exists, otherwise c3-mini.
        json: A file for rows of key, path, caption and captioner, written one after another.
        txt: Write each caption to photo.txt next to photo.jpg, as training tools expect.
        xmp: Write each caption to photo.xmp next to photo.jpg, for photo managers.
        html: Also write an HTML page with the photos and their captions.
        overwrite: Replace existing captions, both in files next to photos and in ``json``.
        follow_symlinks: Also read symbolic links that lead outside the given folders.
        beams: Number of beams in beam search; 1 is greedy decoding. By default 5, or 1 for GPT-2
            and other language models of transformers.
        length_penalty: Rank beams by log-probability / length ** PENALTY.
        top_p: Sample each word from the most likely words whose probabilities add up to this value.
        temperature: Sampling temperature.
        steer: Let the encoder steer the decoder at every word: magic or zerocap. Slow, and only for
            decoders trained with --unconditional.
        seed: Seed for all random numbers.
        model: The model that the decoder was trained for, as in c3 embed. By default the one whose
            name the decoder has recorded.
        random_init: See `embed`.
        device: See `connect_heads`.
        backend: See `embed`.
        precision: See `embed`.
        encoder: A loaded encoder, instead of ``model``.
        reporter: Shows messages and progress.

    Raises:
        CorpusError: if a path is missing or not an image, a folder contains no images, or two
            photos would share a file of captions.
        StoreError: if the embeddings cannot be read.
        DecoderError: if there is no decoder, or it was trained for another model.
        EncoderError: if the encoder cannot be loaded.
        OutputError: if a file has captions by another captioner or of other photos, or another run
            is writing to it.
        UnusedOptionError: if an option has no effect with another.
    """
    if json is not None and is_url(json):
        raise OutputError(
            f"{json} is a URL, and rows cannot be added to a file there.",
            remedy="Choose a file on this machine.",
        )
    rows: Rows | None = None
    failures: list[Failure] = []
    if embeddings is not None:
        # All rows come from one file, which stands as the path of each caption
        rows, identity = read_rows(embeddings, modality, array)
        files = dict.fromkeys(rows.keys, location(embeddings))

    # The decoder, and how it generates
    if not isinstance(decoder, Captioner):
        folder = Captioner.find(decoder)
        if decoder is None and folder == C3_MINI_CAPTIONER:
            reporter.message("Using the bundled decoder of c3-mini.")
        decoder = Captioner.load(folder, devices.pick(device, "fp32").device)
    generation = decoder.generation(
        GenerationOptions(
            beams=beams,
            length_penalty=length_penalty,
            top_p=top_p,
            temperature=temperature,
            steer=steer,
            seed=seed,
        )
    )

    # What is captioned: the files that the model takes, or rows that may come from it
    if rows is None:
        suffixes = _suffixes_taken_by(model or str(decoder.model.get("name", "")))
        files, failures = _files_by_key(as_list(paths), suffixes, follow_symlinks, reporter)
    else:
        decoder.check_model(identity, rows.embeddings.shape[1])
        decoder.check_embeddings(rows.embeddings, modality, rows.keys, reporter)

    # The digest tells captions of other runs. The vectors of a file without a model are part of it,
    # because their keys may be just the numbers of the rows
    vectors: list[Matrix] = []
    if rows is not None and not identity:
        vectors = [rows.embeddings]
    digest = digest_of([decoder.fingerprint(), generation, modality], *vectors)
    size = decoder.record.get("size")
    decoder_in_words = f"{size} decoder" if size else "a decoder"
    writer = CaptionWriter(
        files,
        captioner=f"{decoder_in_words} of {decoder.model.name}, {_in_words(generation)} "
        f"({digest[:12]})",
        json=None if json is None else Path(json),
        txt=txt,
        xmp=xmp,
        html=None if html is None else location(html),
        overwrite=overwrite,
    )

    def describe_kept_captions() -> str:
        if not writer.files:
            return "No output of this run was kept; --json and --txt save captions one by one."
        again = "start over" if overwrite else "continue"
        return (
            f"{counted(len(writer.captions), 'caption')} kept in {writer.files}; run the same "
            f"command again to {again}."
        )

    with note_on_interrupt(describe_kept_captions), writer:
        existing = len(files) - len(writer.pending)
        if existing:
            reporter.message(f"{existing:,} of {counted(len(files), 'caption')} already existed.")
        # With --steer the encoder compares each word that the decoder could write with the image
        if writer.pending and (rows is None or steer):
            encoder = encoder or resolve_encoder(
                model,
                recorded=decoder.model,
                random_init=random_init,
                device=device,
                backend=backend,
                precision=precision,
                reporter=reporter,
            )
            decoder.check_model(encoder.identity, encoder.dim)
        # Rows are embeddings already; files are encoded, by an encoder that is there if any are
        # pending
        batch_size = 1 if steer else _ROWS
        batches: Iterable[_Batch] = ()
        if rows is not None:
            batches = _row_batches(rows, modality, writer.pending, batch_size)
        elif encoder is not None:
            batches = _file_batches(files, writer.pending, encoder, batch_size)
        with reporter.progress("Captioning", len(writer.pending)) as progress:
            for batch in batches:
                captions = decoder.write(
                    batch.embeddings, batch.modality, batch.keys, encoder, generation
                )
                for row_key, caption in zip(batch.keys, captions, strict=True):
                    writer.write(row_key, caption)
                failures += batch.failures
                progress.advance(len(batch.keys) + len(batch.failures))
        finished = writer.finish(failures)
        for note in notes_on_empty_captions(finished.values()):
            reporter.message(note)
        return Captions(finished, failures, existing, writer.files)


def _in_words(generation: GenerationConfig) -> str:
    """Return how captions are generated."""
    if generation.method == "beam":
        return f"{generation.beams} beams"
    if generation.method == "nucleus":
        return f"top-p {generation.top_p:g}, seed {generation.seed}"
    return generation.method


def _suffixes_taken_by(model: str) -> frozenset[str]:
    """Return the suffixes of files that a model takes. Those of plugins may take sounds; those of
    open_clip take none, so sounds are passed over.
    """
    return IMAGE_SUFFIXES if find_plugin(model) is None else IMAGE_SUFFIXES | AUDIO_SUFFIXES


def _row_batches(rows: Rows, modality: str, pending: Sequence[str], size: int) -> Iterator[_Batch]:
    """Yield the pending rows, ``size`` at a time."""
    row_of_key = positions(rows.keys)
    for start in range(0, len(pending), size):
        keys = pending[start : start + size]
        embeddings = rows.embeddings[[row_of_key[key] for key in keys]]
        yield _Batch(modality, keys, embeddings, failures=[])


def _file_batches(
    files: Mapping[str, Path], pending: Sequence[str], encoder: Encoder, size: int
) -> Iterator[_Batch]:
    """Yield the embeddings of the pending photos, then of the pending sounds, one by one."""
    sounds = [key for key in pending if is_sound(files[key])]
    images = [key for key in pending if not is_sound(files[key])]
    if images:
        encoder.require("image")
        yield from _image_batches(files, images, encoder, size)
    if sounds:
        encoder.require("audio")
    for key in sounds:
        try:
            yield _Batch("audio", [key], encode_sounds(encoder, [files[key]]), failures=[])
        except EncoderError as error:
            cause = error.__cause__ or error
            path = str(files[key])
            failure = Failure(key, path, "decode", type(cause).__name__, reason_of(cause))
            nothing = np.zeros((0, encoder.dim), np.float32)
            yield _Batch("audio", [], nothing, failures=[failure])


def _image_batches(
    photos: Mapping[str, Path], pending: Sequence[str], encoder: Encoder, size: int
) -> Iterator[_Batch]:
    """Yield the embeddings of the pending photos: but for the last ones, at least ``size`` or
    `_PHOTOS` at a time, whichever is fewer. Batches of the encoder stay whole, which on a GPU have
    up to 256 photos.
    """
    images = [ImageItem(key, str(photos[key]), None, None) for key in pending]
    one_shard = [(0, images)]  # no shard is written, so its number does not matter
    options = EmbedOptions(
        workers=None if len(images) > _FEW else 0, batch_size=size if size < _PHOTOS else None
    )

    # Batches of the encoder are gathered, which may have fewer photos than beams do well with
    enough = min(size, _PHOTOS)
    keys: list[str] = []
    parts: list[Matrix] = []
    failures: list[Failure] = []
    remaining = len(images)
    for batch, vectors in encoded_images(encoder, one_shard, options, cores()):
        keys += [row["key"] for row in batch.rows]
        failures += batch.failures
        parts.append(vectors)
        remaining -= len(batch.rows) + len(batch.failures)
        if len(keys) >= enough or not remaining:
            yield _Batch("image", keys, np.concatenate(parts), failures)
            keys = []
            parts = []
            failures = []


def _files_by_key(
    paths: Sequence[str | Path],
    suffixes: frozenset[str],
    follow_symlinks: bool,
    reporter: Reporter,
) -> tuple[dict[str, Path], list[Failure]]:
    """Find files by their suffixes; their keys are paths relative to the folder without the
    suffix, as in a store. The reporter is told of those of other kinds.

    Returns:
        The paths by key; and the files that cannot be used, such as links that lead nowhere.

    Raises:
        CorpusError: if a path is missing or is not an image, or a folder contains none.
    """
    if not paths:
        raise CorpusError(
            "There is nothing to caption: no images were given.",
            remedy="Pass images, folders of images, or --embeddings.",
        )
    path_by_key: dict[str, Path] = {}
    listed = Corpus()  # gets notes and files that cannot be used
    roots = [Path(path) for path in paths]
    has_several_folders = sum(root.is_dir() for root in roots) > 1
    for root in roots:
        images = find_images(listed, root, follow_symlinks, suffixes)
        if not images:
            if root.is_dir():
                raise CorpusError(
                    " ".join([f"There are no images in {root} or its subfolders.", *listed.notes]),
                    remedy="Pass a folder that contains images.",
                )
            if not root.exists():
                raise CorpusError(
                    f"{str(root)!r} does not exist.",
                    remedy="Check the path. Relative paths start from the current folder.",
                )
            raise CorpusError(
                f"{str(root)!r} does not have the name of an image file in UTF-8.",
                remedy=f"Image names end in {', '.join(sorted(suffixes))}.",
            )

        # Keys begin with their folder if there are several, and are paths where they would repeat
        prefix = as_key(f"{root.name}/") if has_several_folders and root.is_dir() else ""
        keys = assign_keys([image.key for image in images])
        for key, image in zip(keys, images, strict=True):
            full_key = prefix + key
            if full_key in path_by_key:
                full_key = image.path
            path_by_key[full_key] = Path(image.path)
    for note in listed.notes:
        reporter.message(note)
    return path_by_key, listed.skipped
