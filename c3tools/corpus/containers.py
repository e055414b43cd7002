"""Tars, tables and lists of images: which files are such containers, and their images in the corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from ..errors import CorpusError
from ..io.files import MALFORMED, read_json
from ..io.locations import is_url, name_or_file
from ..reporter import counted
from .captions import read_captions
from .item_lists import ItemList, as_storable
from .items import CaptionedKeys, Corpus, Entry, ReadOptions, Skipped, is_utf8
from .lists import read_list
from .tables import holds_images, key_of_name, read_arrow, read_parquet
from .tars import read_tar

Reader = Callable[[Path, ReadOptions], Iterator[Entry]]

CONTAINER_SUFFIXES = frozenset({".tar", ".parquet", ".arrow"})
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
LIST_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".parquet"})
_CACHED = "cache-"  # prefix of what Hugging Face datasets keeps beside its data


def container_reader(path: Path, options: ReadOptions) -> Reader | None:
    """Return the function that reads the images of a file; None for a file of texts, or of an unknown format.

    Raises:
        CorpusError: if the file cannot be read, or is a tar that has to be unpacked first.
    """
    suffix = path.suffix.lower()
    if path.name.lower().endswith(COMPRESSED):
        raise CorpusError(
            f"{path} is compressed, so its images cannot be read one by one.",
            remedy="Decompress it to a .tar first (gunzip, unxz, zstd -d). The images in it are already compressed.",
        )
    if suffix == ".tar":
        return read_tar
    if suffix == ".arrow":
        return read_arrow
    if suffix == ".parquet" and holds_images(path, options):
        return read_parquet
    return read_list if suffix in LIST_SUFFIXES and options.image_column is not None else None


def unreadable(path: Path, message: str) -> Skipped:
    """Return the entry for a container that cannot be read."""
    return Skipped(path.name, str(path), "UnreadableContainer", message.replace("\n", " "))


def find_containers(paths: Sequence[Path], options: ReadOptions) -> tuple[list[tuple[Path, Reader]], list[Skipped]]:
    """Choose the tars and tables of images among the files of a folder.

    The tables that img2dataset writes beside its tars, and the caches of Hugging Face datasets, are left out.
    """
    skipped: list[Skipped] = []
    tars = {str(path.with_suffix("")) for path in paths if path.suffix.lower() == ".tar"}
    found: list[tuple[Path, Reader]] = []
    for path in paths:
        suffix = path.suffix.lower()
        if suffix == ".parquet" and str(path.with_suffix("")) in tars:
            continue
        if suffix == ".arrow" and (is_url(path) or not _is_data(path)):
            continue
        try:
            read = container_reader(path, options)
        except CorpusError as error:
            skipped.append(unreadable(path, str(error)))
            continue
        if read is None:
            skipped.append(Skipped(path.name, str(path), "NoImageColumn", _without_images(path)))
        else:
            found.append((path, read))
    return found, skipped


def add_containers(corpus: Corpus, containers: Sequence[tuple[Path, Reader]], options: ReadOptions) -> None:
    """Add the images and videos of all containers, in the order of their paths; of those with one key the first counts.

    Raises:
        CorpusError: if a container cannot be read and is the only input.
    """
    if not containers:
        return
    media = corpus.images, corpus.videos
    alone = len(containers) == 1 and not any(media) and not corpus.texts
    captions_by_key = _captions_by_key(options)
    by_path = {str(path): (path, read) for path, read in containers}  # a pattern and a name may mean one file
    repeats = len(by_path) > 1 or any(media)  # in one container no key comes twice
    captioned = ItemList(str)
    lost = 0

    def add(container: Path, entry: Entry) -> Skipped | None:
        if isinstance(entry, Skipped):
            return entry
        if isinstance(entry, str):
            corpus.notes.append(entry)
            return None
        nonlocal lost
        image, captions = entry
        own_key = image.key
        key = f"{container.stem}/{own_key}" if options.prefix_keys else own_key
        if not is_utf8(f"{key}{image.path}{image.split}"):
            return Skipped(repr(own_key), repr(image.path), "UnicodeError", "the key, path or split is not UTF-8")
        before = next((found for items in media for found in items.find([key]) if found), None) if repeats else None
        if before is not None:
            message = (
                f"{before[1].path} has the same key {key}, and only the first one is embedded; --prefix-keys begins "
                "each key with the name of its file"
            )
            return Skipped(f"{container.name}#{image.path.rpartition('#')[2]}", image.path, "DuplicateKey", message)
        split = image.split
        if captions_by_key is not None:
            given = captions_by_key.get(own_key)
            lost += bool(captions) and given is None
            captions, named_split = given or ([], None)
            split = named_split or split
            captioned.append(own_key)
        corpus.add_image(image._replace(key=key, split=split), captions)
        return None

    for _, (path, read) in sorted(by_path.items()):
        corpus.containers.append(str(path))
        try:
            for entry in read(path, options):
                problem = add(path, entry)
                if problem is not None:
                    corpus.skipped.append(problem)
        except (CorpusError, OSError) as error:
            message = str(getattr(error, "strerror", None) or error)
            if alone:
                raise CorpusError(f"{path} cannot be read ({message}).") from error
            corpus.skipped.append(unreadable(path, message))
    if captions_by_key is not None:
        missing = ItemList(str, (key for key in captions_by_key if not captioned.has(key)))
        missing.sort()
        corpus.captions_without_image += missing
    if lost:
        corpus.notes.append(
            f"Captions come from --captions only. {counted(lost, 'image')} without captions there "
            f"{'has' if lost == 1 else 'have'} captions of {'its' if lost == 1 else 'their'} own, which are not used."
        )


def _captions_by_key(options: ReadOptions) -> CaptionedKeys | None:
    """Return captions and split by the key of the image, from the captions file that was given; None without one."""
    if options.captions is None:
        return None
    rows = CaptionedKeys()
    for row in read_captions(options.captions, options):
        key = row.key or (key_of_name(row.file_name) if row.file_name else None)
        if key is None:
            raise CorpusError(
                f"{options.captions}, line {row.line}: the image is missing.",
                remedy="Captions of images need a column file_name, image or key. To embed texts only, give the file "
                "as PATH.",
            )
        key = as_storable(key)
        if rows.get(key) is None:
            rows.add(key, row.captions, row.split)
        else:
            rows.add_captions(key, row.captions, row.split)
    return rows


def _is_data(path: Path) -> bool:
    """Return whether an Arrow file is part of a saved dataset, or stands alone; caches beside one are not."""
    if path.name.startswith(_CACHED):
        return False
    state = path.parent / "state.json"
    if not state.is_file():
        return path.name != "indices.arrow"
    try:
        value = read_json(state)
        names = [str(file["filename"]) for file in value["_data_files"]]
        indices = value.get("_indices_data_files")
    except (OSError, *MALFORMED) as error:
        raise CorpusError(f"{state} was not written by save_to_disk ({error!r}).") from error
    if indices:
        raise CorpusError(
            f"{path.parent} selects its rows with an index, which is not supported.",
            remedy="Call flatten_indices() before save_to_disk().",
        )
    return path.name in names


def _without_images(path: Path) -> str:
    with name_or_file(path) as source:
        names = pq.read_schema(source).names
    return f"no column with images (columns: {', '.join(names)}); choose one with --image-column"
