"""The embedding run: read the corpus, load the model, plan and make the shards, and return a
summary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..choices import (
    EncoderPrecision,
    ExecutorName,
    NonNegativeFloat,
    NonNegativeInt,
    NumberFormat,
    PositiveInt,
    checked,
)
from ..corpus.items import Corpus, ImageItem, ItemTable, TextItem
from ..corpus.reading import read_corpus
from ..corpus.splits import describe_origins, describe_val_alone, is_val_alone, splits_by_hash
from ..devices import pick_devices
from ..encoders import Encoder, resolve_encoder
from ..encoders.openvino_backend import OpenVINOBackend
from ..encoders.plugins import find_plugin
from ..errors import StoreError, note_on_interrupt
from ..executors import Executor, open_executor
from ..identity import ModelIdentity
from ..inputs.carried import columns_to_keep
from ..io.artifact import digest_of
from ..io.locations import is_url, location
from ..io.lock import locked
from ..reporter import SILENT, Reporter, counted
from ..store import Store, StoreInfo, StoreWriter, create_store
from ..store.dataset import with_column
from ..store.manifest import require_store_or_empty
from ..store.rows import own_items
from ..store.shards import CORPUS_SPLIT, ShardName, shards_in
from .inputs import MEDIA, StoredInputs, record_inputs
from .keys import with_stored_keys
from .plan import Plan, plan_corpus
from .shard_work import EmbedOptions, EmbedWork, ShardEdit, ShardTasks, rewritten_shard, writing_to
from .sources import Sources, absolute
from .summary import EmbedSummary, ModalitySummary


@checked
def embed(
    paths: str | Path | Sequence[str | Path],
    store: str | Path = "c3-store",
    *,
    captions: str | Path | None = None,
    text_column: str | None = None,
    image_column: str | None = None,
    key_column: str | None = None,
    images_root: str | Path | None = None,
    keep_columns: Sequence[str] | None = None,
    download: bool = False,
    model: str | None = None,
    random_init: int | None = None,
    device: str | None = None,
    backend: str = "auto",
    precision: EncoderPrecision = "auto",
    truncate_dim: PositiveInt | None = None,
    query_prompt: str | None = None,
    dtype: NumberFormat = "float16",
    shard_size: PositiveInt = 4096,
    workers: NonNegativeInt | None = None,
    batch_size: PositiveInt | None = None,
    image_timeout: NonNegativeFloat = 60.0,
    exact_decoding: bool = False,
    fps: float | None = None,
    retry_failed: bool = False,
    update: bool = False,
    prune: bool = False,
    dry_run: bool = False,
    follow_symlinks: bool = False,
    executor: ExecutorName | Executor = "local",
    address: str | None = None,
    processes: PositiveInt | None = None,
    encoder: Encoder | None = None,
    reporter: Reporter = SILENT,
) -> Store:
    """Embed images and videos with their captions, or texts, into a store, as `c3 embed` does.

    Inputs that are already in the store are kept, so the same call continues an interrupted run.

    Args:
        paths: Images, videos, folders, WebDataset tars, Parquet or Arrow tables, or text files.
            URLs work too (s3://, gs://, hf://, http(s)://); {000..012} and * are expanded.
        store: The store of embeddings: a folder or a URL (s3://, gs://).
        captions: A file of captions: any table, or COCO's or Karpathy's JSON.
        text_column: Column with the texts.
        image_column: Column with the images, or with their paths or URLs; in ``captions``, too.
        key_column: Column with the keys.
        images_root: Folder against which relative paths in lists are resolved. By default the
            folder of the list.
        keep_columns: Table columns to keep with the rows (strings, numbers, booleans), for example
            url,label. Later runs keep the same columns.
        download: Download images given by URL, in a column such as url or image_url.
        model: The model: c3-mini (bundled, the default), an open_clip model ARCH/PRETRAINED,
            local-dir:PATH, hf-hub:ORG/NAME, or st:NAME_OR_FOLDER (sentence-transformers). `c3
            models` lists more.
        random_init: Use random weights, drawn with this seed, instead of the trained ones.
        device: cpu, cuda, cuda:1 or mps, or several separated by commas, each with its own process
            (cuda:0,cuda:1). By default all GPUs or, if there are none, the fastest device.
        backend: Library that runs the encoder: one listed by c3 info, or auto for the fastest one
            installed that can run the model.
        precision: Number format of computations. auto: bf16 if the hardware supports it, otherwise
            fp32. int8 runs encoders on a CPU, and needs the extra `int8`.
        truncate_dim: Truncate the embeddings of an st: model to this many dimensions; the model
            must be trained for that.
        query_prompt: Prompt to put before each query of c3 search, for st: models. By default the
            model's own query prompt.
        dtype: Number format of the embeddings on disk: float16 or float32.
        shard_size: Number of inputs per shard. A killed run loses at most one shard.
        workers: Number of processes that decode images. The default depends on the number of cores.
        batch_size: Number of images or texts to encode at once. The default depends on the device.
        image_timeout: Time limit for decoding one image, in seconds; 0 for no limit.
        exact_decoding: Decode large JPEGs at full size, to match open_clip exactly. Slower. The
            store records this setting.
        fps: Number of video frames to read per second; their embeddings are averaged. By default 1,
            or the value that the store records.
        retry_failed: Try again to embed the inputs that failed before.
        update: Embed changed inputs again (edited captions, replaced images), and record the new
            paths of moved files.
        prune: Remove the rows of images and captions that are no longer in ``paths``.
        dry_run: Show what would be embedded, updated and removed, and write nothing.
        follow_symlinks: Also read symbolic links, and paths in lists, that lead outside ``paths``.
        executor: Run on this machine (local) or on a Ray cluster (ray; needs the extra `ray`).
        address: Address of the Ray cluster. By default RAY_ADDRESS, or a cluster on this machine;
            if there is none, one is started.
        processes: Number of worker processes on the cluster. By default as many as fit.
        encoder: A loaded encoder, which replaces ``model`` and its options.
        reporter: Shows messages and progress.

    Returns:
        The store; its ``summary`` is the `EmbedSummary` of this run.

    Raises:
        CorpusError: if a path is missing, or there is nothing to embed.
        UnusedOptionError: if an option on tables or captions is given, but no path needs it.
        EncoderError: if the model cannot be loaded.
        StoreError: if the store has embeddings of another model, or is damaged.
        OutputError: if another run is writing to it, or its folder contains other files.
        C3Error: if a worker process fails; finished shards are kept.

    Example:
        >>> c3tools.embed("images", "c3-store")
        Store('c3-store', model='c3-mini', dim=256, float16)
    """
    folder = location(store)
    recorded = StoreInfo.find(folder)
    kept_columns = columns_to_keep(keep_columns, recorded)
    require_store_or_empty(folder)
    options = EmbedOptions(
        dtype=dtype,
        shard_size=shard_size,
        workers=workers,
        batch_size=batch_size,
        image_timeout=image_timeout,
        retry_failed=retry_failed,
        update=update,
        prune=prune,
    )
    options = _with_settings_of_store(options, exact_decoding, fps, folder, recorded)
    if recorded and query_prompt not in (None, recorded.model.get("query_prompt")):
        raise StoreError(
            f"The store {folder} records another query prompt: "
            f"{recorded.model.get('query_prompt')!r}.",
            remedy="Leave --query-prompt out, and give it to `c3 search`.",
        )

    # Read the corpus
    model_name = model or (recorded.model.name if recorded else "")
    if encoder is not None:
        reads_audio = "audio" in encoder.modalities
    else:
        # Models of plugins may embed sounds, those of open_clip do not
        reads_audio = find_plugin(model_name) is not None
    corpus = read_corpus(
        paths,
        captions=captions,
        text_column=text_column,
        image_column=image_column,
        key_column=key_column,
        images_root=images_root,
        follow_symlinks=follow_symlinks,
        download=download,
        audio=reads_audio,
        kept_columns=kept_columns,
        reporter=reporter,
    )
    kept_columns.require_values()
    options = replace(options, columns=kept_columns.types)

    # Report how many inputs were found, what was noticed, and where their splits come from
    counts = [
        counted(len(items), {"audio": "sound"}.get(modality, modality))
        for modality, items in corpus.by_modality().items()
        if items or modality in ("image", "text")
    ]
    reporter.message(f"Found {', '.join(counts[:-1])} and {counts[-1]}.")
    for note in corpus.notes:
        reporter.message(note)
    # Rows that are in the store keep their splits
    of = "Splits" if recorded is None else "Splits of new inputs"
    reporter.message(describe_origins(corpus.split_origins, of=of))

    # Choose the encoder; it is loaded when it is needed
    if encoder is not None and not device:
        devices = [str(encoder.compute.device)]
    else:
        devices = pick_devices(device)
    # With the model of the store, auto is what it stood for when the store was begun
    chosen_backend = backend
    chosen_precision: str = precision
    if recorded and model in (None, recorded.model.name):
        if backend == "auto":
            chosen_backend = recorded.backend or backend
        if precision == "auto":
            chosen_precision = recorded.precision or precision

    def load() -> Encoder:
        return resolve_encoder(
            model,
            recorded=recorded.model if recorded else None,
            random_init=random_init,
            device=devices[0],
            truncate_dim=truncate_dim,
            query_prompt=query_prompt,
            backend=chosen_backend,
            precision=chosen_precision,
            reporter=reporter,
        )

    names_stored_model = (
        recorded is not None
        and model == recorded.model.name
        and random_init == recorded.model.get("random_init")
    )
    names_model = model is not None or random_init is not None
    names_new_model = (names_model and not names_stored_model) or truncate_dim is not None
    is_planned_without_store = dry_run and recorded is None
    if encoder is None and names_new_model and not is_planned_without_store:
        # A model that does not exist, or is not the store's, is refused even if there is nothing
        # to embed
        if recorded is not None and model not in (None, recorded.model.name):
            reporter.message(
                f"The store {folder} has embeddings of {recorded.model.name}. {model} is loaded to "
                f"check whether it is the same model."
            )
        encoder = load()

    if dry_run:
        return _planned_store(folder, recorded, encoder, model, options, corpus, reporter)
    with open_executor(
        executor,
        devices=devices,
        address=address,
        processes=processes,
        gpu=devices[0].startswith("cuda"),
    ) as opened_executor:
        summary = embed_corpus(
            corpus, folder, encoder or load, options, executor=opened_executor, reporter=reporter
        )
    opened = Store.open(folder, incomplete=True)
    opened.summary = summary
    return opened


def _with_settings_of_store(
    options: EmbedOptions,
    exact_decoding: bool,
    fps: float | None,
    folder: Path,
    recorded: StoreInfo | None,
) -> EmbedOptions:
    """Return options in which inputs are read as they were for the rows of the store: as asked if
    there are none.

    Raises:
        StoreError: if something else is asked, or long texts of the store were divided.
    """
    if recorded is None:
        return replace(options, exact_decoding=exact_decoding, fps=1.0 if fps is None else fps)

    if "long_texts" in recorded.preprocessing:
        long_texts = recorded.preprocessing["long_texts"]
        raise StoreError(
            f"The store {folder} was made with --long-texts {long_texts}, which c3 embed no longer "
            f"has.",
            remedy="Embed into another --store, with a model of a longer context.",
        )
    stored_fps = float(recorded.preprocessing.get("fps", 1.0))
    if fps not in (None, stored_fps):
        raise StoreError(
            f"--fps is {fps:g}, but the store {folder} was made with {stored_fps:g}.",
            remedy="Leave --fps out, or embed the videos into another store.",
        )
    stored_exact_decoding = bool(recorded.preprocessing.get("exact_decoding"))
    if exact_decoding and not stored_exact_decoding:
        raise StoreError(
            f"The store {folder} was made without --exact-decoding.",
            remedy="Leave it out, or choose another --store.",
        )
    return replace(options, exact_decoding=stored_exact_decoding, fps=stored_fps)


def _planned_store(
    folder: Path,
    recorded: StoreInfo | None,
    encoder: Encoder | None,
    model: str | None,
    options: EmbedOptions,
    corpus: Corpus,
    reporter: Reporter,
) -> Store:
    """Return the store of a dry run, which may not exist yet, with a summary of what a run would
    do.

    Raises:
        StoreError: if the store has embeddings of another model or dtype.
    """
    if recorded is None:
        # The table shows the name of the model; the dimension is a placeholder that nothing reads
        identity = encoder.identity if encoder else ModelIdentity(name=model or "c3-mini")
        store = Store(folder, StoreInfo(identity, dim=1))
    else:
        wanted = _info_of(encoder, options) if encoder else replace(recorded, dtype=options.dtype)
        recorded.require_same(wanted, own=f"The store {folder}", theirs="the new embeddings")
        store = Store(folder, recorded)
    stored = StoredInputs.read(store)
    corpus = with_stored_keys(corpus, stored, reporter)
    plans = plan_corpus(store, stored, corpus, options, reporter=reporter)
    for plan in plans.values():
        plan.summary.to_embed = sum(len(positions) for _, positions in plan.new)
        plan.summary.to_update = len(plan.summary.changed) if options.update else 0
        plan.summary.to_renew = len(plan.summary.other_columns) if options.update else 0
        plan.summary.to_remove = len(plan.summary.gone) if options.prune else 0
    store.summary = replace(_summary(store, corpus, plans), dry_run=True)
    return store


def embed_corpus(
    corpus: Corpus,
    store: str | Path,
    encoder: Encoder | Callable[[], Encoder],
    options: EmbedOptions | None = None,
    *,
    executor: Executor | None = None,
    reporter: Reporter = SILENT,
) -> EmbedSummary:
    """Embed the inputs of a corpus that are not yet in the store, and add them.

    Args:
        corpus: images, videos and texts.
        store: the folder or URL of the store; created if it does not exist.
        encoder: the contrastive model, or a function that loads it, called only if the store is new
            or there is something to embed.
        options: of the run; by default those of `embed`.
        executor: the executor that makes the shards; None for this process, with the encoder given.
        reporter: shows the progress.

    Raises:
        StoreError: if the store has embeddings of another model, or is damaged.
        OutputError: if another run is writing to it.
        C3Error: if a worker process fails; finished shards are kept.
    """
    folder = location(store)
    options = options or EmbedOptions()
    executor = executor or Executor()
    needed = [name for name, items in corpus.by_modality().items() if items]
    with writing_to(folder), locked(folder), note_on_interrupt(lambda: _kept_in(folder)):
        # Create the store, or check that it is of the same model. Of a store that is there, only
        # the dtype is checked until the encoder is loaded.
        recorded = StoreInfo.find(folder)
        if isinstance(encoder, Encoder) or recorded is None:
            encoder = _load_for_store(folder, encoder, options, needed)
        else:
            wanted = replace(recorded, dtype=options.dtype)
            recorded.require_same(wanted, own=f"The store {folder}", theirs="the new embeddings")
        writer = StoreWriter(folder, reporter=reporter)
        lost_shards = writer.lost
        # Keep the whole shards of an interrupted run; refuse those of a run with other settings
        writer.adopt(digest_of(writer.info))

        # Compare the corpus with the store
        opened = Store.open(folder, incomplete=True)
        stored = StoredInputs.read(opened)
        corpus = with_stored_keys(corpus, stored, reporter)
        corpus = _with_settled_splits(corpus, stored, reporter)
        plans = plan_corpus(opened, stored, corpus, options, lost_shards, reporter)
        # Record new inputs before the first shard, so that an interrupted run knows the files
        # behind its rows. Inputs tried or embedded again are recorded after the shards are made.
        record_inputs(
            opened, stored, _media_to_record(plans, finished=False), corpus, overwrite=False
        )

        # Make the shards of new and changed inputs; edit those that the encoder is not needed for
        made_media_shards: list[ShardName] = []
        for modality, plan in plans.items():
            # Shards with changed inputs get their other edits together with the new rows
            edits_with_new_rows: dict[int, ShardEdit] = {}
            for shard_number, _ in plan.changed:
                edits_with_new_rows[shard_number] = plan.edits.pop(shard_number, ShardEdit())
            tasks = plan.new + plan.changed
            if tasks:
                encoder = _load_for_store(folder, encoder, options, needed)
                work = EmbedWork(opened, modality, encoder, options)
                shard_tasks = ShardTasks(plan.items, tasks, edits_with_new_rows)
                _make_shards(work, shard_tasks, writer, plan.summary, executor, reporter)
            # Texts are not recorded as inputs, since no file of their own is behind them
            if modality in MEDIA:
                made_media_shards += [(modality, shard_number) for shard_number, _ in tasks]
            for shard_number, edit in plan.edits.items():
                writer.replace_shard(
                    modality, shard_number, *rewritten_shard(opened, modality, shard_number, edit)
                )
            plan.summary.removed = len(plan.summary.gone) if options.prune else 0
            plan.summary.renewed = len(plan.summary.other_columns) if options.update else 0
            plan.summary.relocated = len(plan.summary.moved) if options.update else 0

        # List the shards in the manifest, and the failures of files that were only listed
        replaced_shards: list[ShardName] = []
        for modality, plan in plans.items():
            replaced_shards += [(modality, number) for number in plan.replacing_lost]
        sources = Sources(corpus)
        failures_of_other_paths = [
            failure
            for failure in opened.recorded_failures()
            if failure.stage == "list" and not sources.has_below(absolute(failure.path))
        ]
        writer.finish([*failures_of_other_paths, *corpus.skipped], forget=replaced_shards)
        opened = Store.open(folder, incomplete=True)
        record_inputs(
            opened,
            stored,
            _media_to_record(plans, finished=True),
            corpus,
            made=made_media_shards,
            overwrite=True,
            times=_times_of_same_files(plans),
        )

    run_summary = _summary(opened, corpus, plans)
    if isinstance(encoder, Encoder):
        _add_encoder(run_summary, encoder)
    run_summary.all_failed = _all_failed(Store.open(folder, incomplete=True), plans)
    made_again = {*replaced_shards, *shards_in(folder)}
    run_summary.lost = [
        f"{modality} shard {part} ({counted(record.rows, 'row')})"
        for (modality, part), record in lost_shards.items()
        if (modality, part) not in made_again
    ]
    return run_summary


def _kept_in(store: Path) -> str:
    """Return what an interrupted run leaves, in words."""
    if not is_url(store) and not shards_in(store):
        return "No shard was finished; run the same command again to start anew."
    return f"Finished shards are kept in {store}; run the same command again to continue."


def _with_settled_splits(corpus: Corpus, stored: StoredInputs, reporter: Reporter) -> Corpus:
    """Return a corpus that is split by the hash of its keys if it and the store name nothing but
    val.
    """
    items = {name: items.table for name, items in corpus.by_modality().items()}
    names: set[str | None] = set()
    for rows in stored.tables.values():
        names.update(pc.unique(rows[CORPUS_SPLIT]).to_pylist())
    for table in items.values():
        names.update(pc.unique(table["split"]).to_pylist())
    if not is_val_alone(names):
        return corpus
    reporter.message(describe_val_alone())
    hashed = {}
    for name, table in items.items():
        splits = splits_by_hash(own_items(table).to_pylist())
        column = pa.array(splits, table.schema.field("settled").type)
        hashed[name] = with_column(table, "settled", column)
    settled = copy(corpus)
    settled.images = ItemTable(ImageItem, hashed["image"])
    settled.videos = ItemTable(ImageItem, hashed["video"])
    settled.audio = ItemTable(ImageItem, hashed["audio"])
    settled.texts = ItemTable(TextItem, hashed["text"])
    return settled


def _media_to_record(plans: Mapping[str, Plan], *, finished: bool) -> list[pa.Table]:
    """Return the images, videos and sounds that are new; of a finished run also those that were
    embedded again or have new paths. Those that failed are not, so that the next run tries again.
    """
    tables = []
    for modality in MEDIA:
        plan = plans.get(modality)
        if plan is None:
            continue
        positions = [positions for _, positions in plan.new]
        if finished:
            positions += [positions for _, positions in plan.changed]
            positions.append(plan.moved)
        table: Any = plan.items.table
        for some in positions:
            media = table.take(pa.array(some, pa.int64()))
            is_not_updated = pc.is_in(media["key"], pa.array(plan.summary.not_updated, pa.string()))
            tables.append(media.filter(pc.invert(is_not_updated)))
    return tables


def _times_of_same_files(plans: Mapping[str, Plan]) -> pa.Table:
    """Return key and mtime of the files that have the bytes of their rows, of another time."""
    tables = []
    for modality in MEDIA:
        if modality in plans:
            table: Any = plans[modality].items.table.select(["key", "mtime"])
            tables.append(table.take(pa.array(plans[modality].same, pa.int64())))
    schema: Any = [("key", pa.large_string()), ("mtime", pa.int64())]
    return pa.concat_tables([pa.schema(schema).empty_table(), *tables])


def _all_failed(store: Store, plans: dict[str, Plan]) -> dict[str, str]:
    """Return the modalities of which every input failed, with the path and reason of the first."""
    reasons = {}
    for modality, plan in plans.items():
        counts = plan.summary
        has_failures = counts.failed or counts.failed_before
        has_rows = counts.embedded or counts.already
        if has_failures and not has_rows:
            parts = store.parts(modality)
            first = next(f for part in parts for f in store.shard_failures(modality, part))
            reasons[modality] = f"{first.path}: {first.message}"
    return reasons


def _summary(store: Store, corpus: Corpus, plans: dict[str, Plan]) -> EmbedSummary:
    """Return the summary of a run, of the modalities that it read or whose inputs are gone.

    ``images_without_caption`` and ``captions_without_image`` are lists of keys, ``skipped`` and
    ``failures_in_store`` are counts.
    """
    return EmbedSummary(
        store=str(store.path),
        model=store.info.model,
        precision=store.info.precision,
        backend=store.info.backend,
        modalities={
            name: plan.summary for name, plan in plans.items() if plan.items or plan.summary.gone
        },
        images_without_caption=corpus.images_without_caption,
        captions_without_image=corpus.captions_without_image,
        skipped=len(corpus.skipped),
        failures_in_store=len(store.recorded_failures()),
        captions=corpus.captions,
    )


def _add_encoder(summary: EmbedSummary, encoder: Encoder) -> None:
    """Add the encoder that made embeddings to a summary."""
    summary.precision = encoder.compute.precision
    summary.backend = encoder.backend.name
    runs_torch_on_cpu = (summary.backend, encoder.compute.device_type) == ("torch", "cpu")
    summary.lacks_openvino = runs_torch_on_cpu and not OpenVINOBackend.is_installed()


def _load_for_store(
    folder: Path,
    encoder: Encoder | Callable[[], Encoder],
    options: EmbedOptions,
    needed: Collection[str],
) -> Encoder:
    """Return the loaded encoder; create the store if it is missing, and check that it is of the
    same model.

    Raises:
        EncoderError: if the model does not embed all modalities that are needed.
    """
    if not isinstance(encoder, Encoder):
        encoder = encoder()
    encoder.require(*needed)
    create_store(folder, _info_of(encoder, options))
    return encoder


def _info_of(encoder: Encoder, options: EmbedOptions) -> StoreInfo:
    """Return what a store of the encoder's embeddings records."""
    preprocessing = dict(encoder.preprocess.config)
    if options.exact_decoding:
        preprocessing["exact_decoding"] = True
    if options.fps != 1:
        preprocessing["fps"] = options.fps
    return StoreInfo(
        encoder.identity,
        encoder.dim,
        options.dtype,
        encoder.normalised,
        preprocessing=preprocessing,
        precision=encoder.compute.precision,
        backend=encoder.backend.name,
        columns=dict(options.columns),
    )


def _make_shards(
    work: EmbedWork,
    tasks: ShardTasks,
    writer: StoreWriter,
    summary: ModalitySummary,
    executor: Executor,
    reporter: Reporter,
) -> None:
    """Make the shards of one modality, and add them to its summary and to the store."""
    summaries: dict[int, ModalitySummary] = {}
    failed = 0
    start = time.perf_counter()
    label = f"{work.modality.capitalize()}s"
    total = tasks.count_inputs()
    with reporter.progress(label, total) as progress:

        def report(done: int, failures: int) -> None:
            nonlocal failed
            failed += failures
            progress.advance(done, f"{failed:,} failed" if failed else "")

        for shard in executor.run(work, tasks, report):
            name = work.modality, shard.number
            writer.add(name, shard.moments, shard.record, shard.replaced)
            summaries[shard.number] = shard.summary
    for number in sorted(summaries):
        summary.add(summaries[number])
    summary.elapsed = time.perf_counter() - start
