"""Foreign embeddings into a store of the same format as `c3 embed` makes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import StoreError
from ..executors import Executor, LocalExecutor, Report, Tasks, Work
from ..identity import ModelIdentity
from ..io.files import remove_leftovers, sha256_of
from ..io.locations import kind_of, location
from ..reporter import SilentTracker, Tracker
from ..transforms.operations import row_norms
from .failures import Failure, write_failures
from .importers import ColumnNames, Modality, pair, read_clip_retrieval, read_pickle, read_table, read_vectors
from .info import StoreInfo
from .lock import locked
from .reader import Store
from .writer import Shard, create_store, write_shard

SHARD_ROWS = 32_768
_TOLERANCE = 1e-3
UNKNOWN_MODEL = "unknown"


class Written(NamedTuple):
    """What `write_modalities` wrote.

    Attributes:
        rows: by modality.
        pairs: texts whose image is there.
        failures: rows left out, with the reason.
        off_unit: how many rows were not of unit norm, by modality.
    """

    rows: dict[str, int]
    pairs: int
    failures: list[Failure]
    off_unit: dict[str, int]


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Attributes:
        store: the folder.
        rows: rows written, per modality.
        pairs: texts whose image is there.
        failures: rows left out, and why.
        notes: how rows were paired, and what else the user should know, a sentence each.
    """

    store: Path
    rows: dict[str, int]
    pairs: int
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "store": str(self.store),
            "rows": self.rows,
            "pairs": self.pairs,
            "failures": len(self.failures),
            "notes": self.notes,
        }


def import_embeddings(
    store: str | Path,
    *,
    source: Path | None = None,
    image: Path | None = None,
    text: Path | None = None,
    others: Mapping[str, Path] | None = None,
    image_array: str | None = None,
    text_array: str | None = None,
    meta: Path | None = None,
    text_meta: Path | None = None,
    names: ColumnNames | None = None,
    model: str | None = None,
    dtype: str = "float16",
    normalise: bool = True,
    tracker: Tracker | None = None,
    executor: Executor | None = None,
) -> ImportReport:
    """Write embeddings from files into a new store.

    Args:
        store: the folder; it must not hold rows of these modalities yet, except of an interrupted import of the same.
        source: a clip-retrieval folder, or a released pickle, instead of single files.
        image: file of image vectors.
        text: file of text vectors.
        others: files of further modalities.
        image_array: array, tensor or column in ``image``.
        text_array: array, tensor or column in ``text``.
        meta: table with one row per image (per text where there are no images).
        text_meta: table with one row per text.
        names: columns to use.
        model: name of the model that made them.
        dtype: ``float16`` or ``float32``, as stored.
        normalise: divide each row by its norm; False keeps the norms, and says so in the store.
        tracker: told about each block of rows.
        executor: where shards are written, of rows that are read here; None for this process.

    Raises:
        StoreError: if a file cannot be read, rows cannot be paired, dimensions differ, or the store is in use.
    """
    if dtype not in ("float16", "float32"):
        raise StoreError(f"Unknown dtype {dtype!r}.", remedy="Choose float16 or float32.")
    modalities, notes = _read(source, image, text, others or {}, image_array, text_array, meta, text_meta, names)
    dims = {modality.name: modality.vectors.shape[1] for modality in modalities}
    if len(set(dims.values())) > 1:
        listing = " and ".join(f"{name} has {dim}" for name, dim in dims.items())
        raise StoreError(
            f"Embeddings in one store have one dimension; {listing}.", remedy="Import vectors of one model."
        )
    for modality in modalities:
        if len(modality) == 0:
            raise StoreError(f"There are no {modality.name} rows to import.")
    path = location(store)
    files = {"image": image, "text": text, "source": source, "meta": meta, "text_meta": text_meta, **(others or {})}
    origin: dict[str, Any] = {
        "rows": {modality.name: len(modality) for modality in modalities},
        "files": {name: _fingerprint(file) for name, file in sorted(files.items()) if file is not None},
        "arrays": [image_array, text_array],
        "columns": asdict(names or ColumnNames()),
    }
    info = StoreInfo(
        model=ModelIdentity(name=model or UNKNOWN_MODEL),
        dim=next(iter(dims.values())),
        dtype=dtype,
        normalised=normalise,
        extra={"imported": origin},
    )
    written = write_modalities(path, info, modalities, tracker, executor)
    kept = "divided by their norms" if normalise else "kept as they are"
    for modality in modalities:
        name, count = modality.name, written.off_unit[modality.name]
        if count:
            notes.append(f"{count:,} of {len(modality):,} {name} rows were not of unit norm; they were {kept}.")
    return ImportReport(path, written.rows, written.pairs, written.failures, notes)


def write_modalities(
    path: Path,
    info: StoreInfo,
    modalities: Sequence[Modality],
    tracker: Tracker | None = None,
    executor: Executor | None = None,
) -> Written:
    """Write modalities into a new store, or go on with an interrupted call of the same ``info``.

    Args:
        path: the store.
        info: what it says about itself.
        modalities: rows with their columns.
        tracker: told about each block of rows.
        executor: where shards are written; None for this process.

    Raises:
        StoreError: if the store holds rows of one of them from elsewhere, or another process writes to it.
    """
    tracker = tracker or SilentTracker()
    executor = executor or LocalExecutor()
    failures: list[Failure] = []
    rows, off, left_out = {}, {}, {}
    tracker.expect(sum(len(modality) for modality in modalities))
    with locked(path):
        _require_free(path, info, modalities)
        create_store(path, info)
        for modality in modalities:
            bad: list[Failure] = []
            off[modality.name] = 0
            finished = set(Store.open(path).parts(modality.name))
            work = _ImportWork(path, info, modality.name)
            report: Report = lambda count, _: tracker.advance(count)  # noqa: E731
            for left, count in executor.run(work, _Blocks(modality, finished), report):
                bad += left
                off[modality.name] += count
            remove_leftovers(path / modality.name)  # of workers that were lost
            failures += bad
            rows[modality.name] = len(modality) - len(bad)
            left_out[modality.name] = {failure.key for failure in bad}
        write_failures(path, Store.open(path).failures())
    return Written(rows, _pairs(modalities, left_out), failures, off)


def _read(
    source: Path | None,
    image: Path | None,
    text: Path | None,
    others: Mapping[str, Path],
    image_array: str | None,
    text_array: str | None,
    meta: Path | None,
    text_meta: Path | None,
    names: ColumnNames | None,
) -> tuple[list[Modality], list[str]]:
    if source is not None:
        if image or text or others:
            raise StoreError("Give either a folder or pickle, or single files, not both.")
        return _read_source(source, names)
    if not (image or text or others):
        raise StoreError("There is nothing to import.", remedy="c3 import --image FILE --text FILE")
    return pair(
        read_vectors(image, image_array) if image else None,
        read_vectors(text, text_array) if text else None,
        {name: read_vectors(file) for name, file in others.items()},
        meta=read_table(meta) if meta else None,
        text_meta=read_table(text_meta) if text_meta else None,
        names=names,
    )


def _read_source(source: Path, names: ColumnNames | None) -> tuple[list[Modality], list[str]]:
    if not source.exists():
        raise StoreError(f"There is nothing at {source}.", remedy="Check the path; it is relative to where you are.")
    if source.is_dir():
        files, columns = read_clip_retrieval(source)
        return pair(files.get("image"), files.get("text"), {}, meta=columns, names=names)
    if source.suffix.lower() in (".pkl", ".pickle"):
        images, texts = read_pickle(source)
        return pair(images, texts, {}, names=names)
    raise StoreError(f"{source} says nothing about its modality.", remedy=f"Use --image {source} or --text {source}.")


def _require_free(path: Path, info: StoreInfo, modalities: Sequence[Modality]) -> None:
    if kind_of(path / "store.json") is None:
        return
    store = Store.open(path)
    if store.info.extra == info.extra:
        return  # an interrupted import of the same files
    taken = [modality.name for modality in modalities if store.parts(modality.name)]
    if taken:
        raise StoreError(
            f"The store {path} has {' and '.join(taken)} rows already.",
            remedy="Import into another store: --store NAME.",
        )


def _fingerprint(path: Path) -> dict[str, Any]:
    """Name and hash of an imported file, so that a changed file is not taken for an interrupted import."""
    if path.is_dir():
        return {"name": path.name}
    return {"name": path.name, "sha256": sha256_of(path)}


class _Block(NamedTuple):
    """Rows that become a shard: (n, d) float32 with their columns; ``finished`` where the shard is there already."""

    part: int
    vectors: npt.NDArray[np.float32]
    columns: dict[str, list[Any]]
    finished: bool


class _Blocks(Tasks[_Block]):
    """The blocks of a modality, each read when it is asked for."""

    def __init__(self, modality: Modality, finished: set[int]) -> None:
        self._modality = modality
        self._finished = finished

    def __len__(self) -> int:
        return len(range(0, len(self._modality), SHARD_ROWS))

    def __getitem__(self, part: int, /) -> _Block:
        rows = slice(part * SHARD_ROWS, min((part + 1) * SHARD_ROWS, len(self._modality)))
        columns = {name: values[rows] for name, values in self._modality.columns.items()}
        vectors = np.array(self._modality.vectors[rows], dtype=np.float32)
        return _Block(part, vectors, columns, part in self._finished)


@dataclass
class _ImportWork(Work[_Block, tuple[list[Failure], int]]):
    """Blocks of rows into shards; a result is the rows left out, and how many were not of unit norm."""

    path: Path
    info: StoreInfo
    modality: str

    def run(self, tasks: Iterable[_Block], report: Report) -> Iterator[tuple[list[Failure], int]]:
        for block in tasks:
            with np.errstate(over="ignore", invalid="ignore"):
                norms = row_norms(block.vectors)
            good = np.isfinite(norms) & (norms > 0)
            start = block.part * SHARD_ROWS
            keys = block.columns["key"]
            bad = [_failure(keys[row], start + int(row), float(norms[row])) for row in np.flatnonzero(~good)]
            if not block.finished:
                kept = block.vectors[good]
                if self.info.normalised:
                    kept /= norms[good][:, None]
                rows = {n: [v for v, g in zip(vs, good, strict=True) if g] for n, vs in block.columns.items()}
                write_shard(self.path, self.info, Shard(self.modality, block.part, kept, rows, bad))
            report(len(norms), 0)
            yield bad, int((np.abs(norms[good] - 1) > _TOLERANCE).sum())

    def name(self, task: _Block) -> str:
        return f"{self.modality} shard {task.part}"


def _failure(key: str, row: int, norm: float) -> Failure:
    message = "the vector is zero" if norm == 0 else "the vector holds NaN or infinity"
    return Failure(key, f"row {row}", "import", "BadVector", message)


def _pairs(modalities: Sequence[Modality], left_out: Mapping[str, set[str]]) -> int:
    """Texts that were imported, of images that were imported."""
    by_name = {modality.name: modality.columns for modality in modalities}
    if "image" not in by_name or "text" not in by_name:
        return 0
    images = set(by_name["image"]["key"]) - left_out["image"]
    texts = zip(by_name["text"]["key"], by_name["text"]["image_key"], strict=True)
    return sum(owner in images and key not in left_out["text"] for key, owner in texts)
