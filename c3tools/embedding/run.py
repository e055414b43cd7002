"""The embedding run: read the corpus, load the model, plan and make the shards, and return a summary."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..corpus import Corpus, read_corpus
from ..corpus.items import is_within
from ..devices import pick_devices
from ..encoders import Encoder, resolve_encoder
from ..errors import CorpusError, StoreError, UnreachableError, telling_what_is_kept
from ..executors import Executor, LocalExecutor, open_executor
from ..io.locations import kind_of, location
from ..io.lock import locked
from ..reporter import SILENT, Reporter, counted
from ..store import Failure, Store, StoreInfo, create_store, finish_store, rewrite_failures, write_failures
from ..store.manifest import lost_shards
from ..store.metadata import INFO_FILE
from ..store.rewriting import rewrite_shard
from ..store.rows import keys_of
from ..store.shard_indexes import has_indexes, keep_indexes, load_faiss
from ..store.shards import remove_unfinished
from .int8 import calibration_for, keep_int8_model
from .plan import Plan, ShardInputs, Sources, plan_corpus, summarize_plan
from .shards import EmbedWork
from .summary import EmbedSummary, ModalitySummary

DTYPES = ("float16", "float32")
INDEX_FOLDER = ".inputs"  # in the store: the indexes of tars


def embed(
    paths: str | Path | Sequence[str | Path],
    store: str | Path = "c3-store",
    *,
    captions: str | Path | None = None,
    text_column: str | None = None,
    image_column: str | None = None,
    key_column: str | None = None,
    images_root: str | Path | None = None,
    prefix_keys: bool = False,
    download: bool = False,
    model: str | None = None,
    random_init: int | None = None,
    device: str | None = None,
    backend: str = "auto",
    precision: str = "auto",
    compile: bool = False,
    dtype: str = "float16",
    shard_size: int = 4096,
    workers: int | None = None,
    batch_size: int | None = None,
    image_timeout: float = 60.0,
    fps: float = 1.0,
    retry_failed: bool = False,
    update: bool = False,
    prune: bool = False,
    faiss: bool = False,
    dry_run: bool = False,
    follow_symlinks: bool = False,
    executor: str | Executor = "local",
    address: str | None = None,
    processes: int | None = None,
    encoder: Encoder | None = None,
    reporter: Reporter = SILENT,
) -> Store:
    """Embed images and videos with their captions, or texts, into a store, as `c3 embed` does.

    Inputs that are already in the store are kept, so the same call continues an interrupted run.

    Args:
        paths: Folders of images and videos, files of these, WebDataset tars, Parquet or Arrow tables, text files.
            {000..012} and * are expanded. URLs work too: s3://, gs://, hf://, http(s)://.
        store: The store of embeddings: a folder or a URL (s3://, gs://).
        captions: A file of captions: .jsonl, .csv, .tsv, .parquet or COCO .json.
        text_column: Column of the texts.
        image_column: Column of the images, or of their paths or URLs.
        key_column: Column of the keys.
        images_root: The folder that relative paths in lists start from. By default the folder of the list.
        prefix_keys: Begin each key with the name of its tar or table.
        download: Download images that are given by URL.
        model: The model: c3-mini (bundled, the default), ARCH/PRETRAINED as in open_clip, local-dir:PATH or
            hf-hub:ORG/NAME.
        random_init: Use random weights, drawn with this seed, instead of the trained ones.
        device: cpu, cuda, cuda:1 or mps, or several separated by commas, with one process each (cuda:0,cuda:1). By
            default all GPUs, else the fastest available.
        backend: auto, torch, openvino or onnx (the last two are for CPUs and need the extra of that name).
        precision: auto, fp32, bf16, fp16, or int8 (encoders on a CPU; needs the extra int8).
        compile: Compile the model with torch.compile. Takes about a minute, then runs faster.
        dtype: Number format of the embeddings on disk: float16 or float32.
        shard_size: Inputs per shard. A run that is killed loses at most one shard.
        workers: Number of processes that decode images. The default depends on the cores.
        batch_size: Number of images or texts encoded at a time. The default depends on the device.
        image_timeout: Seconds that decoding one image may take; 0: no limit.
        fps: Frames of a video per second. Their mean is its embedding.
        retry_failed: Try again to embed the inputs that failed before.
        update: Embed changed inputs again: edited captions and replaced images.
        prune: Remove the rows of images and captions that are no longer in ``paths``.
        faiss: Write a FAISS index beside each shard: c3 search then needs no c3 index.
        dry_run: Show what would be embedded, updated and removed, and write nothing.
        follow_symlinks: Also read symbolic links, and paths in lists, that lead out of ``paths``.
        executor: Run on this machine (local) or on a Ray cluster (ray; needs the extra ray).
        address: Address of the Ray cluster. By default RAY_ADDRESS, else the cluster of this machine, else a new one
            here.
        processes: Number of worker processes on the cluster. By default as many as fit.
        encoder: A loaded encoder, which replaces ``model`` and its options.
        reporter: Shows messages and progress.

    Returns:
        The store; its ``summary`` is the `EmbedSummary` of this run.

    Raises:
        CorpusError: if a path is missing, or there is nothing to embed.
        MissingExtraError: if ``faiss`` is asked for and FAISS is not installed.
        EncoderError: if the model cannot be loaded.
        StoreError: if the store has embeddings of another model, or is damaged.
        OutputError: if another run is writing to it.
        C3Error: if a worker process fails; finished shards are kept.
    """
    if dtype not in DTYPES:
        raise StoreError(f"There is no dtype {dtype!r}.", remedy="Use float16 or float32.")
    if not 0 < fps < math.inf:
        raise CorpusError(f"--fps is {fps:g}; it is a number of frames per second.", remedy="For example: --fps 1")
    if faiss:
        load_faiss()  # or the error comes before the work
    folder = location(store)
    corpus = read_corpus(
        paths,
        captions=captions,
        text_column=text_column,
        image_column=image_column,
        key_column=key_column,
        images_root=images_root,
        prefix_keys=prefix_keys,
        follow_symlinks=follow_symlinks,
        download=download,
        index_folder=None if dry_run else folder / INDEX_FOLDER,
    )
    videos = f", {counted(len(corpus.videos), 'video')}" if corpus.videos else ""
    reporter.message(f"Found {counted(len(corpus.images), 'image')}{videos} and {counted(len(corpus.texts), 'text')}.")
    for note in corpus.notes:
        reporter.message(note)
    if dry_run:
        planned = Store.open(folder, incomplete=True)
        planned.summary = summarize_plan(planned, corpus, shard_size, retry_failed, update=update, prune=prune)
        return planned
    devices = pick_devices(device) if encoder is None or device else [str(encoder.compute.device)]
    recorded = StoreInfo.load(folder) if _is_store(folder) else None
    indexed = faiss or (recorded is not None and has_indexes(Store.open(folder, incomplete=True)))

    def load() -> Encoder:
        return resolve_encoder(
            model,
            recorded=recorded.model if recorded else None,
            random_init=random_init,
            device=devices[0],
            backend=backend,
            recorded_backend=recorded.backend if recorded else None,
            precision=precision,
            recorded_precision=recorded.precision if recorded else None,
            compiled=compile,
            calibration=calibration_for(corpus, folder, recorded, precision),
            reporter=reporter,
        )

    own = (recorded.model.name, recorded.model.get("random_init")) if recorded else ()
    if encoder is None and (model, random_init) not in ((None, None), own):
        encoder = load()  # another model than the store's is refused even if there is nothing to embed
    gpu = devices[0].startswith("cuda")
    with open_executor(executor, devices=devices, address=address, processes=processes, gpu=gpu) as chosen:
        summary = embed_corpus(
            corpus,
            folder,
            encoder or load,
            dtype=dtype,
            shard_size=shard_size,
            workers=workers,
            batch_size=batch_size,
            image_timeout=image_timeout,
            fps=fps,
            retry_failed=retry_failed,
            update=update,
            prune=prune,
            executor=chosen,
            reporter=reporter,
        )
        if indexed:
            with locked(folder), telling_what_is_kept(lambda: _kept(folder)):
                keep_indexes(folder, chosen, reporter)
    opened = Store.open(folder, incomplete=True)
    opened.summary = summary
    return opened


def embed_corpus(
    corpus: Corpus,
    store: str | Path,
    encoder: Encoder | Callable[[], Encoder],
    *,
    dtype: str = "float16",
    shard_size: int = 4096,
    workers: int | None = None,
    batch_size: int | None = None,
    image_timeout: float = 60.0,
    fps: float = 1.0,
    retry_failed: bool = False,
    update: bool = False,
    prune: bool = False,
    executor: Executor | None = None,
    reporter: Reporter = SILENT,
) -> EmbedSummary:
    """Embed the inputs of a corpus that are not yet in the store, and add them.

    Changed and removed inputs are counted; see `plan` for how they are found.

    Args:
        corpus: images, videos and texts.
        store: the folder or URL of the store; created if it does not exist.
        encoder: the contrastive model, or a function that loads it, called only if there is something to embed.
        dtype: ``float16`` or ``float32``, for storage.
        shard_size: inputs per shard; a run that is killed loses at most one shard.
        workers: processes that decode images for one encoder; None for one per free core.
        batch_size: images or texts encoded at a time; None for the default of the encoder.
        image_timeout: seconds that decoding one image may take (0: no limit); needs a worker.
        retry_failed, update: try failed inputs again; embed changed inputs again.
        prune: remove the rows of inputs that are no longer in the paths of the corpus.
        executor: the executor that makes the shards; None for this process, with the encoder given.
        reporter: shows the progress.

    Raises:
        StoreError: if the store has embeddings of another model, or is damaged.
        OutputError: if another run is writing to it.
        C3Error: if a worker process fails; finished shards are kept.
    """
    executor = executor or LocalExecutor()
    began = time.time()
    folder = location(store)
    modalities: dict[str, ModalitySummary] = {}
    try:
        with locked(folder), telling_what_is_kept(lambda: _kept(folder)):
            if isinstance(encoder, Encoder) or not _is_store(folder):
                encoder = _loaded_for(folder, encoder, dtype)
            else:
                create_store(folder, replace(StoreInfo.load(folder), dtype=dtype))
            opened = Store.open(folder, incomplete=True)
            lost = lost_shards(folder, reporter)
            plans = plan_corpus(
                opened, corpus, shard_size=shard_size, retry_failed=retry_failed, update=update, lost=lost
            )
            if any(
                len(plan.shards) or (update and len(plan.changed)) or (prune and plan.gone) for plan in plans.values()
            ):
                encoder = _loaded_for(folder, encoder, dtype)
            works = {
                modality: EmbedWork(opened, modality, encoder, workers, batch_size, image_timeout, fps, began=began)
                for modality in plans
                if isinstance(encoder, Encoder)
            }
            for modality, plan in plans.items():
                if plan.inputs or plan.summary.gone:
                    modalities[modality] = plan.summary
                if len(plan.shards):
                    _embed_shards(plan.shards, plan.summary, works[modality], executor, reporter)
            # texts first: their images show which of them were removed
            for modality in reversed(works) if update or prune else ():
                plan, work = plans[modality], works[modality]
                _rewrite_shards(plan, work, executor, reporter, update=update, prune=prune)
            remove_unfinished(folder)  # of workers that were lost, of shards that were left without a row
            failures = _roll_up_failures(opened, corpus, prune=prune)
            made_up_for = [(modality, part) for modality in plans for part in plans[modality].made_up_for]
            present = finish_store(folder, made_up_for).shards
    except UnreachableError:  # has a remedy of its own
        raise
    except OSError as error:
        raise StoreError(
            f"The store {folder} cannot be written ({error.strerror or error}).",
            remedy="Finished work is kept. Free some disk space, or check the disk, then run the same command again.",
        ) from error
    return EmbedSummary(
        store=str(folder),
        model=encoder.identity if isinstance(encoder, Encoder) else opened.info.model,
        precision=encoder.compute.precision if isinstance(encoder, Encoder) else opened.info.precision,
        backend=encoder.backend.name if isinstance(encoder, Encoder) else opened.info.backend,
        modalities=modalities,
        images_without_caption=corpus.images_without_caption,
        captions_without_image=corpus.captions_without_image,
        skipped=len(corpus.skipped),
        failures_in_store=len(failures),
        lost=[
            f"{name} shard {part} ({counted(record.rows, 'row')})"
            for (name, part), record in lost.items()
            if present.get((name, part)) != record
        ],
    )


def _is_store(folder: Path) -> bool:
    return kind_of(folder / INFO_FILE) == "file"


def _loaded_for(folder: Path, encoder: Encoder | Callable[[], Encoder], dtype: str) -> Encoder:
    """Return the loaded encoder; create the store if it is missing, and check that it is of the same model."""
    if not isinstance(encoder, Encoder):
        encoder = encoder()
    info = StoreInfo(
        encoder.identity,
        encoder.dim,
        dtype,
        preprocessing=encoder.preprocess.config,
        precision=encoder.compute.precision,
        backend=encoder.backend.name,
        extra={"compiled": True} if encoder.compiled else {},
    )
    keep_int8_model(folder, encoder)
    create_store(folder, info)
    return encoder


def _rewrite_shards(
    plan: Plan[Any],
    work: EmbedWork,
    executor: Executor,
    reporter: Reporter,
    *,
    update: bool,
    prune: bool,
) -> None:
    """Rewrite the shards with changed or removed rows."""
    gone = plan.gone if prune else {}
    changed = set(plan.changed.numbers if update else ())
    if changed:
        work.dropped = {part: frozenset(plan.gone_keys[gone[part]] if part in gone else ()) for part in changed}
        work.compared = {part for part in changed if plan.unmatched.get(part, 0) == len(work.dropped[part])}
        again = ModalitySummary()
        _embed_shards(plan.changed, again, work, executor, reporter)
        plan.summary.updated, plan.summary.not_updated = again.embedded, again.failed
        plan.summary.truncated += again.truncated
        plan.summary.elapsed += again.elapsed
        for stage, seconds in again.seconds.items():
            plan.summary.seconds[stage] += seconds
    for part in sorted(gone.keys() - changed):
        rewrite_shard(work.store, work.modality, part, drop=set(plan.gone_keys[gone[part]]))
    plan.summary.removed = len(plan.gone_keys) if prune else 0


def _embed_shards(
    shards: ShardInputs[Any], summary: ModalitySummary, work: EmbedWork, executor: Executor, reporter: Reporter
) -> None:
    """Make the shards of one modality, and add them to its summary."""
    failed = 0
    start = time.perf_counter()
    with reporter.progress(f"{work.modality.capitalize()}s", shards.inputs) as progress:

        def report(done: int, failures: int) -> None:
            nonlocal failed
            failed += failures
            progress.advance(done, f"{failed:,} failed" if failed else "")

        for part in executor.run(work, shards, report):
            summary.add(part)
    summary.elapsed = time.perf_counter() - start


def _kept(store: Path) -> str:
    """Return a sentence that says what is kept if the run is interrupted now."""
    if not isinstance(store, Path):  # whoever interrupts does not want to wait for a server
        return f"Finished shards are kept in {store}; run the same command again to continue."
    opened = Store.open(store, incomplete=True)
    rows = ", ".join(f"{name} {opened.count(name):,}" for name in opened.modalities)
    return f"Rows kept in {store}: {rows or 'none'}; run the same command again to continue."


def _roll_up_failures(store: Store, corpus: Corpus, *, prune: bool = False) -> list[Failure]:
    """Bring failures.parquet up to date with the failures of the shards and those found while reading the corpus."""
    sources, recorded = Sources(corpus), store.recorded_failures()
    skipped = [Failure(s.key, s.path, "list", s.error, s.message) for s in corpus.skipped]
    has_gone = sources.has_lost_failure if prune else lambda _: False
    failing = {failure.key for failure in (*recorded, *store.failures(), *skipped)}
    embedded = {
        modality: {key for batch in store.batches(modality, ["key"]) for key in failing.intersection(keys_of(batch))}
        for modality in (store.modalities if failing else ())
    }
    for modality, keys in embedded.items():
        for part in store.parts(modality):
            present = store.shard_failures(modality, part)
            left = [failure for failure in present if failure.key not in keys and not has_gone(failure)]
            if len(left) != len(present):
                rewrite_failures(store.path, modality, part, left)
    read_now = set(corpus.containers)
    before = [f for f in recorded if f.stage == "list" and not is_within(f.path, read_now) and not has_gone(f)]
    before = [f for f in before if not corpus.images.has(f.path, "path") and not corpus.videos.has(f.path, "path")]
    listed = [f for f in [*before, *skipped] if not any(f.key in keys for keys in embedded.values())]
    return write_failures(store.path, [*listed, *store.failures()])
