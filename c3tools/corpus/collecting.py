"""Tars, tables and lists into the corpus: which there are, their samples, and keys that repeat."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import CorpusError
from ..io.locations import is_url, location, name_or_file, retrying
from .containers import CONTAINER_SUFFIXES, Reader, container_reader
from .containers.cells import name_as_key
from .formats import read_captions
from .images import find_files, is_utf8
from .items import Corpus, ImageItem, Sample, Skipped, TextItem
from .options import ReadOptions

_CACHED = "cache-"  # how Hugging Face datasets names what it keeps beside its data


class Container(NamedTuple):
    """A file that holds many images, and what reads it."""

    path: Path
    read: Reader


def as_container(path: Path, options: ReadOptions, *, alone: bool) -> Container | Skipped | None:
    """What reads the images of a file, or why it cannot be read; None for a file of texts.

    Raises:
        CorpusError: if it cannot be read and is ``alone``: nothing else would be left to do.
    """
    try:
        read = container_reader(path, options)
    except CorpusError as error:
        if alone:
            raise
        return Skipped(path.name, str(path), "UnreadableContainer", str(error).replace("\n", " "))
    return None if read is None else Container(path, read)


def find_containers(root: Path, options: ReadOptions) -> tuple[list[Container], list[Skipped]]:
    """Tars and tables of images in a folder or below it.

    The tables that img2dataset writes beside its tars, and the caches of Hugging Face datasets, are left out.
    """
    paths, skipped = _files(root, options)
    tars = {str(path.with_suffix("")) for path in paths if path.suffix.lower() == ".tar"}
    found: list[Container] = []
    for path in paths:
        suffix = path.suffix.lower()
        if suffix == ".parquet" and str(path.with_suffix("")) in tars:
            continue
        if suffix == ".arrow" and not _is_data(path):
            continue
        container = as_container(path, options, alone=False)
        if isinstance(container, Container):
            found.append(container)
        else:
            skipped.append(container or Skipped(path.name, str(path), "NoImageColumn", _without_images(path)))
    return found, skipped


def add_containers(corpus: Corpus, containers: Sequence[Container], options: ReadOptions) -> None:
    """Add the samples of all containers, in the order of their paths; a key counts where it comes first.

    Raises:
        CorpusError: if a container cannot be read and is the only input.
    """
    if not containers:
        return
    samples = _Samples(corpus, options)
    alone = len(containers) == 1 and not corpus.images and not corpus.texts
    by_path = {str(container.path): container for container in containers}  # a pattern and a name may mean one file
    for _, (path, read) in sorted(by_path.items()):
        corpus.containers.append(str(path))
        try:
            for found in read(path, options):
                samples.add(path, found)
        except (CorpusError, OSError) as error:
            message = str(getattr(error, "strerror", None) or error)
            if alone:
                raise CorpusError(f"{path} cannot be read ({message}).") from error
            samples.add(path, Skipped(path.name, str(path), "UnreadableContainer", message.replace("\n", " ")))
    samples.finish()


class _Samples:
    """Adds the samples of containers to a corpus."""

    def __init__(self, corpus: Corpus, options: ReadOptions) -> None:
        self._corpus = corpus
        self._options = options
        self._seen = {item.key: item.path for item in corpus.images}
        self._given = _captions_by_key(options)
        self._used: set[str] = set()

    def add(self, container: Path, sample: Sample | Skipped) -> None:
        """Add one sample; a key that is there already makes it a failure."""
        if isinstance(sample, Skipped):
            self._corpus.skipped.append(sample)
            return
        key = f"{container.stem}/{sample.key}" if self._options.prefix_keys else sample.key
        if not is_utf8(f"{key}{sample.path}{sample.split}"):
            where = (repr(sample.key), repr(sample.path))
            self._corpus.skipped.append(Skipped(*where, "UnicodeError", "the key, path or split is not UTF-8"))
            return
        if key in self._seen:
            self._corpus.skipped.append(self._duplicate(container, sample, key))
            return
        self._seen[key] = sample.path
        captions, split = sample.captions, sample.split
        if self._given is not None:
            captions, said = self._given.get(sample.key, ([], None))
            split = said or split
            self._used.add(sample.key)
        self._corpus.images.append(ImageItem(key, sample.path, split, sample.size, sample.place))
        if not add_captions(self._corpus, key, captions, sample.path, split):
            self._corpus.pairing.images_without_caption.append(key)

    def finish(self) -> None:
        """Say which captions found no image."""
        if self._given is not None:
            self._corpus.captions_files.append(location(self._options.captions or ""))
            self._corpus.pairing.captions_without_image += sorted(self._given.keys() - self._used)

    def _duplicate(self, container: Path, sample: Sample, key: str) -> Skipped:
        remedy = "only the first is embedded; --prefix-keys puts the name of its file before each key"
        name = f"{container.name}#{sample.path.rpartition('#')[2]}"
        return Skipped(name, sample.path, "DuplicateKey", f"{self._seen[key]} has the key {key}; {remedy}")


def _captions_by_key(options: ReadOptions) -> dict[str, tuple[list[str], str | None]] | None:
    """The rows of a captions file that was given, by the key of their image."""
    if options.captions is None:
        return None
    rows: dict[str, tuple[list[str], str | None]] = {}
    for row in read_captions(location(options.captions), options.caption_columns):
        key = row.key or (name_as_key(row.file_name) if row.file_name else None)
        if key is None:
            raise CorpusError(
                f"{options.captions}, line {row.line} names no image.",
                remedy="Captions of images need a column file_name, image or key; texts alone are given as PATH.",
            )
        captions, split = rows.get(key, ([], None))
        rows[key] = ([*captions, *row.captions], row.split or split)
    return rows


def add_captions(corpus: Corpus, key: str, captions: Iterable[str], path: str, split: str | None) -> int:
    """Add the captions of an image; returns how many can be used, the others are skipped and said."""
    usable = 0
    for number, caption in enumerate(captions):
        problem = caption_problem(caption)
        if problem is None:
            corpus.texts.append(TextItem(f"{key}#{number}", caption.strip(), key, split))
            usable += 1
        else:
            corpus.skipped.append(Skipped(f"{key}#{number}", path, *problem))
    return usable


def caption_problem(caption: str) -> tuple[str, str] | None:
    """Why a caption cannot be used: (error, message), or None."""
    if not caption.strip():
        return "EmptyCaption", "the caption is empty"
    try:
        caption.encode("utf-8")
    except UnicodeEncodeError:
        return "UnicodeError", "the caption is not UTF-8"
    return None


def _files(root: Path, options: ReadOptions) -> tuple[list[Path], list[Skipped]]:
    if not is_url(root):
        found, skipped = find_files(root, CONTAINER_SUFFIXES, follow_symlinks=options.follow_symlinks)
        return [file.path for file in found], skipped
    filesystem = root.fs  # type: ignore[attr-defined]
    names = retrying(lambda: filesystem.find(root.path), str(root))  # type: ignore[attr-defined]
    paths = [location(filesystem.unstrip_protocol(name)) for name in sorted(names)]
    return [path for path in paths if path.suffix.lower() in CONTAINER_SUFFIXES - {".arrow"}], []


def _is_data(path: Path) -> bool:
    """Whether an Arrow file is part of a saved dataset, or stands alone; caches beside one are not."""
    if path.name.startswith(_CACHED):
        return False
    state = path.parent / "state.json"
    if not state.is_file():
        return path.name != "indices.arrow"
    try:
        value = json.loads(state.read_bytes())
        names = [str(file["filename"]) for file in value["_data_files"]]
        indices = value.get("_indices_data_files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorpusError(f"{state} is not what save_to_disk writes ({error!r}).") from error
    if indices:
        raise CorpusError(
            f"{path.parent} keeps its rows by an index.", remedy="Call flatten_indices() before save_to_disk()."
        )
    return path.name in names


def _without_images(path: Path) -> str:
    import pyarrow.parquet as pq

    with name_or_file(path) as source:
        names = pq.read_schema(source).names
    return f"no column with images; the columns are: {', '.join(names)}; --image-column names one"
