"""`c3 export`: make an export, continue it, or bring it up to date with its store."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..choices import (
    ExecutorName,
    ExportFormat,
    ExportMetric,
    ExportRole,
    NumberFormat,
    PositiveInt,
    checked,
)
from ..errors import (
    C3Error,
    OutputError,
    StoreError,
    TransformError,
    UnusedOptionError,
    note_on_interrupt,
)
from ..executors import Executor
from ..io.artifact import holds_result
from ..io.files import (
    sha256_of,
    write_atomically,
    write_json_atomically,
    write_text_atomically,
)
from ..io.locations import kind_of, location, read_all, remove, size_of
from ..io.lock import locked
from ..lists import as_list
from ..reporter import SILENT, Reporter, counted
from ..store import Store, StoreInfo
from ..store.manifest import MOMENTS_FILE, Manifest, StoreWriter
from ..store.shards import (
    CODE_FORMAT,
    FAILURES_FILE,
    FUSED,
    INFO_FILE,
    MANIFEST_FILE,
)
from ..transforms import Pipeline, open_pipeline
from ..transforms.calibration import CALIBRATION_FILE, Calibration
from ..transforms.fitting import MIN_ROWS_OF_A_MEAN
from ..transforms.pipeline import JSON_NAME, TENSORS_NAME
from .formats import CARD_FILE, FORMATS, Format, ParquetFormat, TableFormat
from .parts import ExportPlan, Recipe, plan_parts, write_parts
from .record import (
    REFIT,
    REPLACE,
    ExportRecord,
    Request,
    Settings,
    fitted_shards,
    refuse,
)

_FILES = (JSON_NAME, TENSORS_NAME, CALIBRATION_FILE)


@dataclass(frozen=True)
class ExportReport:
    """Result of an export.

    Attributes:
        output: the folder or the URL.
        pipeline: the fitted pipeline.
        rows: per modality, how many rows went out as training and as inference inputs.
        parts: how many parts were written now.
        kept: how many were finished before.
        bytes: size of all data files.
        fit: rows of the store when the pipeline was fitted, those of them in shards that have not
            changed, and rows of the store now: ``fitted``, ``unchanged``, ``now``.
    """

    output: Path
    pipeline: Pipeline
    rows: dict[str, dict[str, int]]
    parts: int
    kept: int
    bytes: int
    fit: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values, without the pipeline."""
        values = {name: value for name, value in vars(self).items() if name != "pipeline"}
        return values | {"output": str(self.output)}

    def lines(self) -> list[str]:
        """Return the rows of each modality and what was written, a line each."""
        lines = []
        for modality, counts in self.rows.items():
            line = f"{modality}: {counted(sum(counts.values()), 'row')}"
            if self.pipeline.noisy and FUSED not in self.rows:
                line += f", {counts['training']:,} of them training inputs"
            lines.append(line)
        written = f"Wrote {self.bytes / 1e6:,.1f} MB to {self.output}"
        if self.kept:
            written += f" ({counted(self.kept, 'file was', 'files were')} already finished)"
        return [*lines, written]


@checked
def export_store(
    store: Store | str | Path = "c3-store",
    *,
    output: str | Path = "c3-export",
    preset: str = "c3",
    pipeline: Pipeline | str | Path | None = None,
    format: ExportFormat = "parquet",
    modality: Sequence[str] | None = None,
    sigma: float | str | None = None,
    role: ExportRole = "auto",
    train_on: str = "text",
    before_noise: bool = False,
    metric: ExportMetric = "ip",
    one_table: bool = False,
    fuse: bool = False,
    dtype: NumberFormat = "float16",
    seed: int = 0,
    workers: PositiveInt = 2,
    refit: bool = False,
    overwrite: bool = False,
    executor: ExecutorName | Executor = "local",
    address: str | None = None,
    processes: PositiveInt | None = None,
    reporter: Reporter = SILENT,
) -> ExportReport:
    """Write the transformed embeddings of a store to a folder or a URL.

    If ``output`` already contains the same export of this store, it is updated: new and changed
    shards are transformed with the existing pipeline, and parts whose shard no longer exists are
    removed.

    Args:
        store: See `embed`.
        output: The folder, or the URL, to write to.
        preset: The preset, or a JSON or YAML file of steps; `c3 export --list` shows the presets.
        pipeline: Your own pipeline instead of a preset: a .yaml or .json file, or the folder (or
            hf-hub:ORG/NAME) of a fitted one.
        format: parquet, npy, safetensors or hf (for the datasets library).
        modality: Export only these modalities.
        sigma: Standard deviation of the noise, per dimension: a number, or auto or pairs as in c3
            train-decoder. By default √0.016, the paper's value, so that an export does not depend
            on an estimate.
        role: Rows that get noise: the train split of ``train_on`` (auto), all rows (training) or
            none (inference).
        train_on: The modality of the training inputs.
        before_noise: Stop before the pipeline's first noise step, and write float32 rows that are
            not normalised. `c3 train-decoder --store` applies the other steps, with new noise in
            every epoch.
        metric: How the rows will be searched: by inner product (ip), or by L2 distance or cosine
            (l2). For l2, rows and queries get an extra dimension that preserves the ranking.
        one_table: Write all modalities to one Parquet table, rows/, with a column modality and keys
            such as image/KEY.
        fuse: Write one row per item, for search: the normalised sum of its image and first text
            (modality fused), or its only row. No noise is added.
        dtype: See `embed`.
        seed: Seed for all random numbers.
        workers: Number of files to write at the same time.
        refit: Fit the pipeline again on the current store, and transform all rows with it.
        overwrite: Replace an existing export in ``output``, even one in another format or of
            another store.
        executor: See `embed`.
        address: See `embed`.
        processes: See `embed`.
        reporter: Shows the progress.

    Raises:
        TransformError: if the pipeline does not fit the store.
        OutputError: if ``output`` contains another export or other files, or is written by another
            run.
        StoreError: if the store cannot be read, or is an export.
        UnusedOptionError: if an option has no effect with another.

    Example:
        >>> report = c3tools.export_store("c3-store", output="c3-export", preset="c3")
        >>> report.rows["text"]
        {'training': 130, 'inference': 490}
        >>> c3tools.Store.open("c3-export")
        Store('c3-export', model='c3-mini', dim=256, float16)
    """
    chosen = as_list(modality)
    store = Store.open(store, reporter=reporter)
    store.info.require_raw(store.path, "Export the store that was exported.")

    # Decide what the rows depend on: the pipeline, the modalities and the settings
    wanted = open_pipeline(pipeline, preset, sigma=sigma, train_on=train_on).for_metric(
        metric=metric
    )
    applied = len(wanted.steps)
    if before_noise:
        applied = _steps_before_noise(wanted)
        dtype = "float32"
    if fuse:
        excluded = {
            "--before-noise": before_noise,
            "--sigma": sigma is not None,
            "--role training": role == "training",
            "--metric l2": metric == "l2",
        }
        _check_fuse(chosen or store.modalities, excluded)
    exported = [FUSED, "image", "text"] if fuse else chosen or store.modalities
    layout = _choose_layout(store, format, one_table, exported)
    settings = Settings(
        layout.name,
        dtype,
        role="inference" if fuse else role,
        train_on=train_on,
        seed=seed,
        applied=applied,
        metric=metric,
        fuse=fuse,
    )
    for name in chosen or ():
        store.require(name)
    asked = Request.of(store, wanted, {})
    output = location(output)
    with locked(output), note_on_interrupt(lambda: _kept_in(output)):
        # See what is there, and refuse what may not be replaced
        writer = open_export(
            output, is_index=False, files=_FILES, replaces=overwrite, reporter=reporter
        )
        former = None if writer is None else ExportRecord.of(writer.info)
        if writer is not None and not overwrite:
            _refuse_other_export(output, former, asked, settings, refit=refit)

        # Fit the pipeline, unless the fit that is there is used
        fitted = None
        if writer is not None and former is not None and not (refit or overwrite):
            fitted = _fit_that_is_there(writer, former, store, reporter)
        if fitted is None:
            if not wanted.fitted:
                wanted.fit(store)
                reporter.message(wanted.describe_fit(store))
            wanted.check_model(store.info.model)
            wanted.check_dim(store.info.dim)
        recipe = Recipe(store, fitted or wanted, layout, settings)
        _check_rows(recipe)
        record = former
        if record is None or fitted is None or writer is None:
            record = ExportRecord(asked, fitted_shards(store), settings)
            writer = describe(output, writer, recipe, record, files=_FILES)

        # Write the parts that are new or changed. A new fit changes those of all modalities that
        # are there, also of those that were not chosen now
        modalities = list(exported)
        if chosen and refit and not overwrite:
            former_modalities = {name for name, _ in writer.parts()}
            modalities += sorted(former_modalities.intersection(store.modalities))
        keeps_others = chosen is not None and not (refit or overwrite)
        plan = plan_parts(recipe, writer, modalities, keeps_others=keeps_others)
        write_parts(
            recipe,
            writer,
            plan,
            f"Exporting {recipe.pipeline.name}",
            workers=workers,
            executor=executor,
            address=address,
            processes=processes,
            reporter=reporter,
        )

        # Write what belongs to all parts, and put everything in place
        _write_card(writer, recipe)
        _write_calibration(writer, recipe, is_new_fit=fitted is None)
        # The failures of a shard are in its part; those of listing are in no shard
        listing_failures = [
            failure for failure in store.recorded_failures() if failure.stage == "list"
        ]
        writer.finish(listing_failures)
    return _report(recipe, writer, plan, exported, record)


def _kept_in(output: Path) -> str:
    """Return what an interrupted run leaves, in words."""
    return f"Finished files are kept in {output}; run the same command again to write the others."


def _choose_layout(store: Store, name: str, one_table: bool, modalities: Sequence[str]) -> Format:
    """Return the layout of this name, or that of one table.

    Raises:
        UnusedOptionError: if one table is asked for, and the layout is not Parquet.
    """
    if one_table:
        if name != ParquetFormat.name:
            raise UnusedOptionError("--one-table", f"with --format {name}")
        return TableFormat({*store.modalities, *modalities})
    return FORMATS[name]


def _check_fuse(modalities: Sequence[str], excluded: Mapping[str, bool]) -> None:
    """Refuse to fuse rows of other modalities than images and texts, or with other options.

    Args:
        modalities: to export.
        excluded: the options that exclude ``--fuse``, and whether they are given.

    Raises:
        TransformError: with the option, or the modalities.
    """
    for option, is_given in excluded.items():
        if is_given:
            raise TransformError(
                f"{option} and --fuse exclude each other.", remedy="Leave out one of them."
            )
    if {*modalities} != {"image", "text"}:
        raise TransformError(
            f"--fuse needs images and texts, not {', '.join(modalities)}.",
            remedy="Choose them with --modality image,text, or leave out --fuse.",
        )


def _steps_before_noise(pipeline: Pipeline) -> int:
    """Return the number of steps before the first noise.

    Raises:
        TransformError: if there is no noise.
    """
    for place, step in enumerate(pipeline.steps):
        if step.noisy:
            return place
    raise TransformError(f"{pipeline.name} adds no noise.", remedy="Leave out --before-noise.")


def _check_rows(recipe: Recipe) -> None:
    """Refuse, before anything is written, rows that the metric or a sum is not made for, and too
    few sums to know their moments.

    Raises:
        TransformError: with the pipeline, or the number of items that have an image and a text.
    """
    if recipe.settings.metric == "l2":
        recipe.row_pipeline.longest  # noqa: B018 - it raises the error
    if not recipe.settings.fuse:
        return
    if not recipe.info.normalised:
        raise TransformError(
            f"The rows of {recipe.pipeline.name} do not have norm 1, so images and texts would not "
            f"count equally in the sum.",
            remedy="Choose another --preset, for example gr-clip, or leave out --fuse.",
        )
    count = recipe.rows_of_modality(FUSED)
    if count < MIN_ROWS_OF_A_MEAN:
        raise TransformError(
            f"{counted(count, 'item has', 'items have')} an image and a text, and --fuse needs "
            f"{MIN_ROWS_OF_A_MEAN}.",
            remedy="Leave out --fuse. Searches then find items by their image or their text.",
        )


def open_export(
    output: Path, *, is_index: bool, files: Collection[str], replaces: bool, reporter: Reporter
) -> StoreWriter | None:
    """Return a writer for the export in a folder or at a URL, or for ``is_index`` the index; None
    if there is none.

    Raises:
        OutputError: if there is something else.
        StoreError: if store.json is damaged, or the manifest of an export that this run does not
            replace.
    """
    name = "index" if is_index else "export"
    if not holds_result(output, name, (INFO_FILE, MANIFEST_FILE)):
        return None
    info = StoreInfo.load(output)
    new_folder = "Choose a new or empty folder."
    if not info.exported:
        raise OutputError(f"{output} is a store, not an earlier {name}.", remedy=new_folder)
    if (info.export_format == CODE_FORMAT) != is_index:
        other = "an export" if is_index else "an index"
        raise OutputError(f"{output} is {other}, not an earlier {name}.", remedy=new_folder)
    if replaces:
        # A damaged manifest is removed: without one, an export is one that did not finish
        try:
            Manifest.load(output)
        except StoreError:
            remove(output / MANIFEST_FILE)
    writer = StoreWriter(output, files=files, reporter=reporter)
    listed = None if writer.before is None else writer.before.files.get(INFO_FILE)
    if listed is not None and sha256_of(output / INFO_FILE) != listed:
        raise StoreError(
            f"{output / INFO_FILE} is not the file that {MANIFEST_FILE} lists: it is damaged.",
            remedy=f"Write it again with `c3 verify --store {output} --repair`.",
        )
    return writer


def _refuse_other_export(
    output: Path,
    former: ExportRecord | None,
    asked: Request,
    settings: Settings,
    *,
    refit: bool,
) -> None:
    """Refuse to replace an export of other settings, or without ``refit`` one of another fit.

    Raises:
        OutputError: with what differs, and the option that replaces it.
    """
    if former is None:
        refuse(output, "its store.json does not record what it was made from", REPLACE)
        return
    changed = []
    for name, value in asdict(former.settings).items():
        now = getattr(settings, name)
        # Another pipeline has other steps
        if now != value and (name != "applied" or former.asked.pipeline == asked.pipeline):
            changed.append(f"its {name} is {value}, not {now}")
    if changed:
        refuse(output, "; ".join(changed), REPLACE)
    differences = former.asked.differences(asked)
    if differences and not refit:
        refuse(output, "; ".join(differences), REFIT)


def _fit_that_is_there(
    writer: StoreWriter, former: ExportRecord, store: Store, reporter: Reporter
) -> Pipeline | None:
    """Return the pipeline of an export, and say how old its fit is; None if a run was killed before
    it was written.

    Raises:
        OutputError: if all shards have changed since, or some whose rows it holds.
        TransformError: if it is damaged.
    """
    pipeline = load_fit(writer)
    if pipeline is None:
        return None
    reason = former.reason_to_refit(store, pipeline)
    if reason is not None:
        refuse(writer.path, reason, REFIT)
    age = former.age(store)
    if age is not None and any(step.fits for step in pipeline.steps):
        reporter.message(f"{age} --refit fits it again.")
    return pipeline


def load_fit(writer: StoreWriter) -> Pipeline | None:
    """Return the fitted pipeline of an export; None if a run was killed before it was written.

    Raises:
        TransformError: if it is missing, damaged, or not the one of store.json.
    """
    try:
        pipeline = Pipeline.load(writer.path)
        settings = writer.info.exported["settings"]
        is_other_metric = pipeline.metric != settings.get("metric", "ip")
        tensors = writer.info.exported["transform"]["tensors"]
        if is_other_metric or pipeline.record()["tensors"] != tensors:
            raise TransformError(
                f"{writer.path / JSON_NAME} is not the pipeline that {INFO_FILE} records.",
                remedy="Fit it again with --refit.",
            )
    except TransformError:
        if writer.before is None:
            return None
        raise
    return pipeline


def describe(
    output: Path,
    writer: StoreWriter | None,
    recipe: Recipe,
    record: ExportRecord,
    *,
    files: Collection[str],
) -> StoreWriter:
    """Write store.json and the pipeline of a new fit, and return the writer of the export.

    Those of an export that is there wait until `StoreWriter.finish` puts them in place.
    """
    content = recipe.described(record).to_dict()
    if writer is None:
        # First of all: it says whose folder this is if the run is killed
        write_json_atomically(output / INFO_FILE, content)
        writer = StoreWriter(output, files=files)
    else:
        write_json_atomically(writer.place(INFO_FILE), content)
    recipe.pipeline.save(writer.place(JSON_NAME).parent)
    return writer


def _write_card(writer: StoreWriter, recipe: Recipe) -> None:
    """Write README.md if the format has one, and let what other formats have beside be removed."""
    if recipe.info.export_format is not None:
        for name in (MOMENTS_FILE, FAILURES_FILE):
            writer.rewriting.remove(name)
    card = recipe.format.card(writer.final_names(), recipe.info)
    if card is not None:
        write_text_atomically(writer.place(CARD_FILE), card)
    elif writer.before is not None and CARD_FILE in writer.before.files:
        writer.rewriting.remove(CARD_FILE)


def _write_calibration(writer: StoreWriter, recipe: Recipe, *, is_new_fit: bool) -> None:
    """Write what scores of the rows are calibrated with, or why they cannot be.

    The moments belong to the fit, as those of an index: an export that follows its store keeps
    them.
    """
    # Was the file that is there written by a run that finished?
    path = writer.path / CALIBRATION_FILE
    is_exchanged = False
    if writer.before is not None and kind_of(path) is not None:
        is_exchanged = sha256_of(path) != writer.before.files.get(CALIBRATION_FILE)

    # Refuse rows whose scores cannot be calibrated; else take the calibration that is there, or
    # fit it
    calibration = Calibration({}, recipe.pipeline)
    refused = ""
    modalities = {modality for modality, _ in writer.parts()}
    if recipe.settings.applied < len(recipe.pipeline.steps):
        refused = "They have not gone through the whole pipeline."
    elif recipe.pipeline.noisy and any(recipe.training_rows(name) for name in modalities):
        refused = "The training inputs among them contain noise."
    else:
        if not is_new_fit and not is_exchanged:
            with suppress(C3Error):  # it is missing or damaged, or was refused before
                calibration = Calibration.load(writer.path)
        # Without that of the fit, it is made of the store as it is now
        if not modalities <= calibration.moments.keys():
            try:
                calibration = Calibration.fit(recipe.store, pipeline=recipe.pipeline)
            except TransformError as error:
                refused = error.message
            if calibration.moments and recipe.settings.fuse:
                calibration.moments[FUSED] = recipe.fused_moments(writer)

    # Write it, if it differs from the file that is there
    content = calibration.content(refused)
    if kind_of(path) is None or read_all(path) != content:
        waiting = path if writer.before is None else writer.rewriting.file(CALIBRATION_FILE)
        write_atomically(waiting, lambda file: file.write_bytes(content))


def _report(
    recipe: Recipe,
    writer: StoreWriter,
    plan: ExportPlan,
    modalities: Sequence[str],
    record: ExportRecord,
) -> ExportReport:
    """Count the rows of each role, and the files of these modalities."""
    rows = {}
    for modality in modalities:
        training = recipe.training_rows(modality)
        rows[modality] = {
            "training": training,
            "inference": recipe.rows_of_modality(modality) - training,
        }
    files = []
    finished = 0
    for (modality, _), names in writer.parts().items():
        if modality in modalities:
            files += names
            finished += 1
    return ExportReport(
        writer.path,
        recipe.pipeline,
        rows,
        len(plan.todo),
        finished - len(plan.todo),
        sum(size_of(writer.path / name) for name in files),
        record.fit_rows(recipe.store),
    )
