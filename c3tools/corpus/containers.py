"""Tars, tables and lists of images: which files are such containers, and their images in the corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from ..errors import CorpusError
from ..io.files import MALFORMED, read_json
from ..io.locations import is_url, name_or_file
from ..io.parquet import UNREADABLE
from ..reporter import counted
from .captions import read_captions
from .items import Corpus, Entry, ReadOptions, Skipped, as_storable, is_utf8, key_of_name
from .tables import pick_image_column, read_arrow_images, read_list, read_parquet_images
from .tars import read_tar

Reader = Callable[[Path, ReadOptions], Iterator[Entry]]

CONTAINER_SUFFIXES = frozenset({".tar", ".parquet", ".arrow"})
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_LISTS = frozenset({".csv", ".tsv", ".jsonl", ".parquet"})
_CACHED = "cache-"  # prefix of what Hugging Face datasets keeps beside its data


def container_reader(path: Path, options: ReadOptions) -> Reader | None:
    """Return the function that reads the images of a file; None for a file of texts, or of an unknown format.

    Raises:
        CorpusError: if the file cannot be read, or is a tar that has to be unpacked first.
    """
    suffix = path.suffix.lower()
    if path.name.lower().endswith(_COMPRESSED):
        raise CorpusError(
            f"{path} is compressed, so its images cannot be read one by one.",
            remedy="Decompress it to a .tar first (gunzip, unxz, zstd -d). The images in it are already compressed.",
        )
    if suffix in (".tar", ".arrow"):
        return read_tar if suffix == ".tar" else read_arrow_images
    if suffix == ".parquet":
        try:
            with name_or_file(path) as source:
                column = pick_image_column(pq.read_schema(source), options.image_column, path)
        except UNREADABLE as error:
            raise CorpusError(
                f"{path} is not a readable Parquet file ({error}).",
                remedy="The file may be cut short: the end of a Parquet file says where its rows are. Copy it again.",
            ) from error
        if column is not None:
            return read_parquet_images
    return read_list if suffix in _LISTS and options.image_column is not None else None


def unreadable(path: Path, error: Exception) -> Skipped:
    """Return the entry for a container that cannot be read."""
    message = str(getattr(error, "strerror", None) or error)
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
            skipped.append(unreadable(path, error))
            continue
        if read is not None:
            found.append((path, read))
            continue
        with name_or_file(path) as source:
            names = ", ".join(pq.read_schema(source).names)
        message = f"no column with images (columns: {names}); choose one with --image-column"
        skipped.append(Skipped(path.name, str(path), "NoImageColumn", message))
    return found, skipped


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


def add_containers(corpus: Corpus, containers: Sequence[tuple[Path, Reader]], options: ReadOptions) -> None:
    """Add the images and videos of all containers, in the order of their paths; of those with one key the first counts.

    Raises:
        CorpusError: if a container cannot be read and is the only input.
    """
    if not containers:
        return
    media = (corpus.images, corpus.videos)
    alone = len(containers) == 1 and not any(media) and not corpus.texts
    by_path = {str(path): (path, read) for path, read in containers}  # a pattern and a name may mean one file
    owners: dict[str, str] | None = None  # the path of the image with a key; in one container no key comes twice
    if len(by_path) > 1 or any(media):
        owners = {image.key: image.path for items in media for image in items}
    captions_by_key = _captions_by_key(options)
    captioned: set[str] = set()
    lost = 0

    def add(container: Path, entry: Entry) -> None:
        nonlocal lost
        if isinstance(entry, str):
            corpus.notes.append(entry)
            return
        if isinstance(entry, Skipped):
            corpus.skip(*entry)
            return
        image, captions = entry
        own_key, split = image.key, image.split
        key = f"{container.stem}/{own_key}" if options.prefix_keys else own_key
        if owners is not None and is_utf8(f"{key}{image.path}{split}"):
            if key in owners:
                message = (
                    f"{owners[key]} has the same key {key}, and only the first one is embedded; --prefix-keys begins "
                    "each key with the name of its file"
                )
                place = f"{container.name}#{image.path.rpartition('#')[2]}"
                corpus.skip(place, image.path, "DuplicateKey", message)
                return
            owners[key] = image.path if image.source is None else image.source.file
        if captions_by_key is not None:
            given = captions_by_key.get(own_key)
            lost += bool(captions) and given is None
            captions, named_split = given or ([], None)
            split = named_split or split
            captioned.add(own_key)
        corpus.add_image(image._replace(key=key, split=split), captions)

    for _, (path, read) in sorted(by_path.items()):
        corpus.containers.append(str(path))
        try:
            for entry in read(path, options):
                add(path, entry)
        except (CorpusError, OSError) as error:
            if alone:
                message = getattr(error, "strerror", None) or error
                raise CorpusError(f"{path} cannot be read ({message}).") from error
            corpus.skip(*unreadable(path, error))
    if captions_by_key is not None:
        corpus.captions_without_image += sorted(captions_by_key.keys() - captioned)
    if lost:
        corpus.notes.append(
            f"Captions come from --captions only. {counted(lost, 'image')} without captions there "
            f"{'has' if lost == 1 else 'have'} captions of {'its' if lost == 1 else 'their'} own, which are not used."
        )


def _captions_by_key(options: ReadOptions) -> dict[str, tuple[list[str], str | None]] | None:
    """Return captions and split by the key of the image, from the captions file that was given; None without one."""
    if options.captions is None:
        return None
    rows: dict[str, tuple[list[str], str | None]] = {}
    for row in read_captions(options.captions, options):
        key = row.key or (key_of_name(row.file_name) if row.file_name else None)
        if key is None:
            raise CorpusError(
                f"{options.captions}, line {row.line}: the image is missing.",
                remedy="Captions of images need a column file_name, image or key. To embed texts only, give the file "
                "as PATH.",
            )
        captions, split = rows.get(as_storable(key), ([], None))
        rows[as_storable(key)] = [*captions, *row.captions], row.split or split
    return rows
