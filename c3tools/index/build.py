"""`c3 index`: build the index of a store, continue it, or bring it up to date."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ..choices import ExecutorName, Fraction, PositiveInt, checked
from ..corpus.splits import ALL
from ..errors import C3Error, StoreError, TransformError, UnusedOptionError, note_on_interrupt
from ..executors import Executor
from ..export.export import describe, load_fit, open_export
from ..export.parts import Recipe, plan_parts, write_parts
from ..export.record import ExportRecord, Request, Settings, fitted_shards
from ..io.files import sha256_of, write_atomically, write_json_atomically
from ..io.locations import kind_of, location, read_all
from ..io.lock import locked
from ..lists import as_list
from ..moments import Moments
from ..reporter import SILENT, Reporter
from ..store import Store
from ..store.manifest import StoreWriter
from ..store.shards import FUSED, INFO_FILE
from ..transforms import Pipeline, open_pipeline
from ..transforms.calibration import CALIBRATION_FILE, Calibration
from ..transforms.fitting import load_command
from ..transforms.pipeline import JSON_NAME, TENSORS_NAME
from ..transforms.space import Space
from .coder import choose_factory, train_coder
from .codes import TRAINED_FILE, CodeFormat, load_faiss
from .index import Index
from .recall import measure_bias, measure_recall
from .transformed_rows import TransformedRows

_FILES = (JSON_NAME, TENSORS_NAME, TRAINED_FILE, CALIBRATION_FILE)
_GROWTH = 2  # times the rows it was fitted on, beyond which means and cells are computed again


@dataclass(frozen=True)
class _Fit:
    """Fit of an index: all that its rows go through.

    Attributes:
        pipeline: the fitted pipeline.
        format: has the trained FAISS index.
        moments: of transformed rows, by modality, which scores are calibrated with.
    """

    pipeline: Pipeline
    format: CodeFormat
    moments: dict[str, Moments]


@checked
def build_index(
    store: Store | str | Path = "c3-store",
    *,
    output: str | Path = "c3-index",
    factory: str = "auto",
    modality: Sequence[str] | None = None,
    split: str | None = None,
    preset: str | None = None,
    pipeline: Pipeline | str | Path | None = None,
    recall: Fraction = 0.98,
    seed: int = 0,
    rebuild: bool = False,
    executor: ExecutorName | Executor = "local",
    address: str | None = None,
    processes: PositiveInt | None = None,
    reporter: Reporter = SILENT,
) -> Index:
    """Index the transformed embeddings of a store. No noise is added to them.

    The rows of an export go through the steps of its pipeline that are left, if any; its pipeline
    transforms the queries.

    If ``output`` has an index with the same settings, the rows of new and changed shards are added,
    and the rows of removed shards are removed; ``record["added"]`` is the number of rows that were
    added. Otherwise, and if the store has more than twice the rows it was built from, the index is
    rebuilt, and a message gives the reason.

    Args:
        store: See `embed`.
        output: The folder, or the URL, to write to.
        factory: A FAISS index string, or auto to choose by the number of rows: Flat, then
            IVF,SQfp16, then OPQ,IVF,PQ.
        modality: Index only these modalities. By default all modalities, in one index.
        split: See `gap_report`.
        preset: The preset, or a JSON or YAML file of steps, for rows and queries. By default
            gr-clip, which subtracts each modality's mean; c1 changes nothing. Exports keep their
            own pipeline.
        pipeline: Your own pipeline instead of a preset.
        recall: The recall@10 that the search is tuned to reach.
        seed: Seed for all random numbers.
        rebuild: Rebuild the index, with new means from all rows, instead of updating it.
        executor: See `embed`.
        address: See `embed`.
        processes: See `embed`.
        reporter: Shows the progress.

    Raises:
        StoreError: if there is nothing to index, FAISS rejects the factory, or it describes a kind
            of index to which rows cannot be added by their codes.
        UnusedOptionError: if a preset or a pipeline is given for an export.
        OutputError: if ``output`` contains other files, or another run is writing to it.
        TransformError: if the pipeline does not fit the store, or the rows of an export have an
            extra dimension.
        MissingExtraError: if faiss is not installed.

    Example:
        >>> c3tools.build_index("c3-store", output="c3-index")
        Index('c3-index': 744 rows, Flat)
    """
    modality = as_list(modality)
    load_faiss()
    output = location(output)
    store = Store.open(store, reporter=reporter)
    modalities = list(modality) if modality else store.modalities
    for name in modalities:
        store.require(name)
    unfitted_pipeline, note = _choose_pipeline(store, preset, pipeline)
    options = {
        "factory": factory,
        "modality": list(modality) if modality else None,
        "split": split or ALL,
        "recall": recall,
        "seed": seed,
    }
    request = Request.of(store, unfitted_pipeline, options)
    kept = "Finished parts are kept; run the same command again to build the rest."
    with locked(output), note_on_interrupt(lambda: kept):
        # Use the fit that is there, or make a new one
        existing = open_export(
            output, is_index=True, files=_FILES, replaces=rebuild, reporter=reporter
        )
        build = None
        if existing is not None and not rebuild:
            build = _reuse_fit(existing, store, request, modalities, reporter)
        if build is None:
            if note is not None:
                reporter.message(note)
            build = _make_fit(
                store, unfitted_pipeline, modalities, request, existing, output, reporter
            )
        writer = build.writer
        fit = build.fit
        recipe = Recipe(store, fit.pipeline, fit.format, build.record.settings)

        # Write the parts that are new or changed
        plan = plan_parts(recipe, writer, modalities, keeps_others=False)
        write_parts(
            recipe,
            writer,
            plan,
            "Indexing",
            workers=1,  # FAISS uses all cores
            executor=executor,
            address=address,
            processes=processes,
            reporter=reporter,
        )

        # Complete store.json with the place of the store, and how the index is searched best
        place = str(store.path)
        if isinstance(store.path, Path):
            place = str(store.path.absolute())
            if isinstance(output, Path):
                place = os.path.relpath(place, output)  # since both may move together
        content = build.record.index | {"store": place}
        if "nprobe" not in content:
            source = TransformedRows(store, recipe.row_pipeline, modalities, recipe.settings.split)
            content |= measure_recall(source, recipe, writer, recall)
        index_info = recipe.described(replace(build.record, index=content))
        if build.is_new or index_info != writer.info:
            write_json_atomically(writer.place(INFO_FILE), index_info.to_dict())
        manifest = writer.finish()

    # Tell what was added; of a new index also how it ranks
    index = Index.describe(output)
    if not build.is_new:
        parts = [(part.modality, part.number) for part in plan.todo]
        index.record["added"] = sum(manifest.shards[part].rows for part in parts)
        return index
    index.record["added"] = index.rows.num_rows
    # An index of fewer than ten rows has recall@1 to recall@9
    for name, value in index.record.items():
        if name.startswith("recall@") and value < recall:
            reporter.message(
                f"{name} is {value:.3f}, below the {recall:g} that you asked for. A --factory with "
                f"larger codes finds more; Flat is exact."
            )
    if len(modalities) > 1 and not fit.moments:
        reporter.message(
            "Searches of this index rank by the cosine, because scores cannot be calibrated."
        )
    if len(modalities) == 2 and not store.info.exported:
        index.bias = measure_bias(store, recipe.row_pipeline, modalities, seed)
    return index


@dataclass(frozen=True)
class _Build:
    """An index that is being written.

    Attributes:
        writer: of the index.
        record: what store.json says of the fit.
        fit: that rows go through.
        is_new: whether all rows of the index are new in it.
    """

    writer: StoreWriter
    record: ExportRecord
    fit: _Fit
    is_new: bool


def _choose_pipeline(
    store: Store, preset: str | None, pipeline: Pipeline | str | Path | None
) -> tuple[Pipeline, str | None]:
    """Return the pipeline, which need not be fitted, and a message if nothing is centred.

    Raises:
        UnusedOptionError: if a preset or a pipeline is given for an export.
    """
    # Queries of an index of an export go through its pipeline
    exported_pipeline = Space.of(store).pipeline
    if exported_pipeline is not None:
        if preset is not None or pipeline is not None:
            option = "--preset" if pipeline is None else "--pipeline"
            reason = f"with the export {store.path}, whose own pipeline is used"
            raise UnusedOptionError(option, reason)
        return exported_pipeline, None

    # gr-clip subtracts the means of texts and of other rows. Where either is missing, nothing is
    # subtracted
    loaded_moments, _ = store.external_moments()
    modalities = {*store.modalities, *loaded_moments}
    has_both_means = "text" in modalities and len(modalities) > 1
    if pipeline is not None or preset not in (None, "gr-clip") or has_both_means:
        return open_pipeline(pipeline, preset or "gr-clip"), None
    others = "images" if "text" in modalities else "texts"
    note = (
        f"Nothing is centred: the store has only {' and '.join(sorted(modalities))} rows. That is "
        f"fine unless you search with {others}. In that case, load their moments: "
        f"{load_command(store)}."
    )
    return open_pipeline(None, "c1"), note


def _reuse_fit(
    writer: StoreWriter,
    store: Store,
    request: Request,
    modalities: Sequence[str],
    reporter: Reporter,
) -> _Build | None:
    """Return the index that is there with its fit, and say how old it is; None if the fit cannot be
    used, after a message with the reason.
    """
    is_first = writer.before is None  # a first run that was killed
    record = ExportRecord.of(writer.info)
    reason = _reason_to_rebuild(writer, record, request, store, modalities)
    if reason is not None and not is_first:
        reporter.message(f"Rebuilding {writer.path}: {reason}.")
    if reason is not None or record is None:
        return None

    # The fit is missing if a run was killed before all of it was written
    try:
        pipeline = load_fit(writer)
        coder = CodeFormat(read_all(writer.path / TRAINED_FILE))
        coder.trained  # noqa: B018 - a file that was cut short is refused here
        moments = Calibration.load(writer.path).moments
    except (OSError, C3Error):
        return None
    if pipeline is None:
        return None

    age = record.age(store)
    if age is not None and not is_first and not store.info.exported:
        reporter.message(f"{age} --rebuild fits it again.")
    return _Build(writer, record, _Fit(pipeline, coder, moments), is_new=is_first)


def _reason_to_rebuild(
    writer: StoreWriter,
    former: ExportRecord | None,
    request: Request,
    store: Store,
    modalities: Sequence[str],
) -> str | None:
    """Return why the fit of an index that is there cannot be used; None if it can."""
    if former is None:
        return f"its {INFO_FILE} does not record what it was made from"
    differences = former.asked.differences(request)
    if differences:
        return "; ".join(differences)
    listed = {} if writer.before is None else writer.before.files
    for name in _FILES:
        path = writer.path / name
        if kind_of(path) is None:
            return f"{name} is missing"
        if name in listed and sha256_of(path) != listed[name]:
            return f"{name} is damaged"
    built_from = former.index["built_from"]
    rows = sum(store.count(name, former.settings.split) for name in modalities)
    if rows > _GROWTH * built_from:
        return f"the store has more than twice the {built_from:,} rows it was built from"
    try:
        pipeline = load_fit(writer)
    except TransformError as error:
        return error.message
    return None if pipeline is None else former.reason_to_refit(store, pipeline)


def _make_fit(
    store: Store,
    pipeline: Pipeline,
    modalities: Sequence[str],
    request: Request,
    existing: StoreWriter | None,
    output: Path,
    reporter: Reporter,
) -> _Build:
    """Fit the pipeline, train the FAISS index, and write both, in place of an index that is there.

    Raises:
        StoreError: if there are no rows, or FAISS cannot make the index.
        TransformError: if the pipeline does not fit the store.
    """
    # Fit the pipeline on the store
    split = request.options["split"]
    if not pipeline.fitted:
        pipeline.fit(store)
        reporter.message(pipeline.describe_fit(store))
    pipeline.check_model(store.info.model)
    rows = sum(store.count(name, split) for name in modalities)
    if rows == 0:
        raise StoreError(
            f"The store {store.path} has no rows in the split {split!r} to index. Its splits are "
            f"{store.list_splits()}."
        )

    # Train the FAISS index on rows that have gone through the steps that are left
    factory = request.options["factory"]
    if factory == "auto":
        factory = choose_factory(rows, store.info.dim)
    space = Space.of(store)
    steps_left = Space.after(pipeline, f"an index of {store.path}").path_from(space)
    source = TransformedRows(store, steps_left, modalities, split)
    coder = train_coder(source, rows, factory, request.options["seed"], reporter)

    # Moments are those of the export, or follow from those of the store. Only the rows tell those
    # after a memory, and those of an export that is not normalised or was not calibrated
    moments = None
    if steps_left.steps or store.info.normalised:
        with suppress(TransformError):
            if FUSED in store.modalities and store.require_listed(CALIBRATION_FILE):
                moments = Calibration.load(store.path).moments
            else:
                moments = Calibration.fit(store, pipeline=source.pipeline).moments
    if moments is None:
        moments = {name: source.moments(name) for name in modalities}
    fit = _Fit(pipeline, coder, moments)

    # Write them. Whole vectors of float32 are encoded
    settings = Settings(
        format=coder.name,
        dtype="float32",
        role="inference",
        train_on="text",
        seed=0,
        applied=len(steps_left.steps),
        split=split,
        code_size=int(coder.trained.sa_code_size()),
    )
    built: dict[str, object] = {"factory": factory, "built_from": rows}
    if space.noised:
        built["noised"] = sorted(space.noised)
    record = ExportRecord(request, fitted_shards(store), settings, built)
    recipe = Recipe(store, pipeline, coder, settings)
    writer = describe(output, existing, recipe, record, files=_FILES)
    calibration = Calibration(moments, pipeline).content()
    write_atomically(writer.place(CALIBRATION_FILE), lambda path: path.write_bytes(calibration))
    write_atomically(writer.place(TRAINED_FILE), lambda path: path.write_bytes(coder.content))
    return _Build(writer, record, fit, is_new=True)
