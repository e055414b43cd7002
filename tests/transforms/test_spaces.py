"""What each command does with rows of every space, as docs/reference/exports.md has it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import c3tools
from c3tools import Pipeline, Store
from c3tools.arrays import Matrix
from c3tools.clusters.source import Source
from c3tools.corpus.splits import ALL
from c3tools.errors import C3Error, EncoderError, TransformError
from c3tools.identity import UNKNOWN_MODEL
from c3tools.inputs.import_embeddings import read_rows
from c3tools.paper.ablation.caption_table import CaptionData
from c3tools.paper.ablation.image_table import ScoredPhotos
from c3tools.paper.ablation.methods import IMAGE_METHODS, METHODS
from c3tools.store.dataset import save_data_set
from c3tools.store.means import compute_means, load_means, save_means
from c3tools.store.rows import keys_of
from c3tools.store.shards import StoreInfo
from c3tools.transforms.presets import TrainingPipeline
from c3tools.transforms.space import Space
from tests.stores import gap_store

Found = dict[str, tuple[list[str], Matrix]]  # keys and rows by modality
QUICK: dict[str, Any] = {"precision": "fp32", "epochs": 1}
NAMES = ("image", "text")
REFUSAL = re.compile(
    "is an export|is an index|cannot be used with|was trained on features|belongs to the model|"
    "each item is stored once|Two modalities are needed|has no modality 'image'|no captions in text"
)
KINDS = {
    "store": "raw",
    "export": "finished",
    "export with noise": "noised",
    "`--before-noise`": "before",
    "`--fuse`": "fused",
    "`--metric l2`": "l2",
    "index": "index",
    "store of another model": "other",
    "store without a model's name": "unnamed",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of the same embeddings, exports of one pipeline, and what was made with it."""
    home = tmp_path_factory.mktemp("spaces")
    raw = gap_store(home / "raw", dtype="float32")
    gap_store(home / "other", dtype="float32", model={"name": "another"})
    gap_store(home / "unnamed", dtype="float32", model={"name": UNKNOWN_MODEL})
    c3: dict[str, Any] = {"preset": "c3", "sigma": 0.1, "dtype": "float32"}
    c3tools.export_store(raw, output=home / "finished", role="inference", **c3)
    c3tools.export_store(raw, output=home / "noised", **c3)
    c3tools.export_store(raw, output=home / "before", before_noise=True, **c3)
    c3tools.export_store(raw, output=home / "l2", role="inference", metric="l2", **c3)
    c3tools.export_store(raw, output=home / "fused", fuse=True, preset="c3", dtype="float32")
    pipeline = Pipeline.load(home / "finished")
    c3tools.build_index(raw, output=home / "index", pipeline=pipeline, factory="Flat")
    c3tools.cluster(home / "finished", output=home / "clusters")
    return home


@pytest.fixture(scope="module")
def made(home: Path) -> Callable[[str], Any]:
    """The captioner and the heads of the store, each trained once."""

    @cache
    def make(name: str) -> Any:
        if name == "heads":
            features = c3tools.read_features(store=home / "raw")
            return c3tools.connect_heads(features, output=home / "heads", dim=8, **QUICK)
        return c3tools.train_captioner(
            home / "raw",
            pipeline=Pipeline.load(home / "finished"),
            output=home / "decoder",
            size="tiny",
            set=["batch_size=32"],
            **QUICK,
        )

    return make


def clustered(source: Source) -> Found:
    found = {}
    for name in NAMES:
        keys = keys_of(source.table(name, ["key"]))
        rows = [source.transform(batch, name) for batch in source.batches(name)]
        found[name] = (keys, np.concatenate(rows))
    return found


def new_clusters(store: Path, out: Path, home: Path, made: Any) -> Found:
    c3tools.cluster(store, output=out)
    return clustered(Source.open(Store.open(store, codes=True), NAMES, ALL, None))


def assigned(store: Path, out: Path, home: Path, made: Any) -> Found:
    shutil.copytree(home / "clusters", out)
    clusters = c3tools.cluster(store, output=out, assign=True)
    return clustered(Source.open(Store.open(store, codes=True), NAMES, ALL, clusters.space))


def indexed(store: Path, out: Path, home: Path, made: Any) -> Found:
    # The model of this fit is that of one store
    pipeline = None if StoreInfo.load(store).exported else Pipeline.load(home / "finished")
    if pipeline is not None:
        pipeline.provenance = {}
    index = c3tools.build_index(store, output=out, pipeline=pipeline, factory="Flat")
    keys = keys_of(index.rows)
    found = {}
    for name, places in index.places.items():
        rows = index.indexes[name].reconstruct_n(0, len(places))
        found[name] = ([keys[place] for place in places], rows)
    return found


def searched(store: Path, out: Path, home: Path, made: Any) -> Found:
    index = c3tools.Index.open(home / "index")
    found = {}
    for name, key in (("image", "img001"), ("text", "img001#0")):
        assert index.search(key=key, store=store)[0].hits[0].key == key
        found[name] = ([key], index._stored_query(key, store).embeddings)
    return found


def evaluated(store: Path, out: Path, home: Path, made: Any) -> Found:
    options: dict[str, Any] = {"decoder": made("decoder"), "resamples": 0, "beams": 1}
    found = c3tools.evaluate_captions(store, **options)
    assert found.captions == c3tools.evaluate_captions(home / "raw", **options).captions
    return {}


def trained_on(store: Path, out: Path, home: Path, made: Any) -> Found:
    opened = Store.open(store)
    choice = TrainingPipeline.choose(opened, None, None, None)
    path = choice.fit(opened, "train", "text")[0].part(choice.applied)
    found = {}
    for name in opened.modalities:
        rows = opened.load(name)
        found[name] = (rows.keys, path.transform(rows.embeddings, modality=name))
    return found


def ablated(store: Path, out: Path, home: Path, made: Any) -> None:
    CaptionData.read(Store.open(store), METHODS, "test", None)


def ablated_images(store: Path, out: Path, home: Path, made: Any) -> None:
    with pytest.raises(EncoderError):  # the model of the store is loaded next
        ScoredPhotos.read(Store.open(store), IMAGE_METHODS, "test", 8, (), device="cpu")


def merged(store: Path, out: Path, home: Path, made: Any) -> None:
    shutil.copytree(store, out / "copy")
    model = "named" if store.name == "unnamed" else None
    c3tools.merge_stores([store, out / "copy"], output=out / "m", keep_first=True, model=model)


def left_out(store: Path, out: Path, home: Path, made: Any) -> None:
    shutil.copytree(store, out)
    c3tools.leave_out(out, keys=["img001"])


def loaded(store: Path, out: Path, home: Path, made: Any) -> None:
    shutil.copytree(store, out)
    source = "raw" if StoreInfo.load(store).exported else store.name
    save_means(home / source, home / f"{source}.safetensors")
    load_means(out, home / f"{source}.safetensors")


# Those that return the rows that they use
PATHS: dict[str, Callable[[Path, Path, Path, Any], Found]] = {
    "clusters": new_clusters,
    "clusters --assign": assigned,
    "index": indexed,
    "search --key": searched,
    "evaluate-captions": evaluated,
    "train-decoder": trained_on,
    "train-generator": trained_on,
}
OTHERS: dict[str, Callable[[Path, Path, Path, Any], object]] = {
    "connect heads": lambda store, out, home, made: c3tools.connect_heads(
        c3tools.read_features(store=store), output=out, dim=8, **QUICK
    ),
    "connect apply": lambda store, out, home, made: c3tools.apply_heads(
        made("heads"), c3tools.read_features(store=store), output=out
    ),
    "gap-report": lambda store, out, home, made: c3tools.gap_report(store),
    "means show": lambda store, out, home, made: compute_means(store),
    "export": lambda store, out, home, made: c3tools.export_store(store, output=out),
    "pairs": lambda store, out, home, made: c3tools.check_pairs(store),
    "duplicates": lambda store, out, home, made: c3tools.find_duplicates(store),
    "merge": merged,
    "split": lambda store, out, home, made: c3tools.split_store(store, output=out),
    "leave-out": left_out,
    "push": lambda store, out, home, made: save_data_set(Store.open(store), out),
    "means save": lambda store, out, home, made: save_means(store, out),
    "means load": loaded,
    "ablate-captions": ablated,
    "ablate-images": ablated_images,
    "search --vector": lambda store, out, home, made: read_rows(store, "image"),
    "caption --embeddings": lambda store, out, home, made: read_rows(store, "image"),
    "generate --embeddings": lambda store, out, home, made: read_rows(store, "image"),
}


def documented() -> dict[str, list[str]]:
    """The cells of the table by command."""
    page = Path(__file__).parents[2] / "docs/reference/exports.md"
    table = page.read_text("utf-8").partition("| command | store |")[2].partition("\n\n")[0]
    head, _, *lines = table.split("\n")
    assert [cell.strip() for cell in head.strip(" |").split("|")] == [*KINDS][1:]
    cells = {}
    for line in lines:
        commands, *rest = (cell.strip() for cell in line.strip(" |").split("|"))
        for command in re.findall("`([^`]+)`", commands):
            cells[command] = rest
    return cells


def test_the_table_has_every_command() -> None:
    assert sorted(documented()) == sorted([*PATHS, *OTHERS])


@pytest.mark.parametrize("verb", [*PATHS, *OTHERS])
def test_a_command_takes_what_the_table_says(
    verb: str, home: Path, made: Callable[[str], Any], tmp_path: Path
) -> None:
    run: Any = PATHS.get(verb) or OTHERS[verb]
    pipeline = Pipeline.load(home / "finished")
    raw = Store.open(home / "raw")
    outcomes = []
    for kind, expected in zip(KINDS.values(), documented()[verb], strict=True):
        try:
            found = run(home / kind, tmp_path / kind, home, made)
        except C3Error as error:
            outcomes.append("refused")
            assert expected == "refused" and REFUSAL.search(str(error)), f"{kind}: {error}"
            continue
        has_steps_left = kind in ("raw", "before", "other", "unnamed")
        outcome = "path applied" if verb in PATHS and has_steps_left else "follows"
        outcomes.append(outcome)
        assert expected == outcome, kind
        if verb not in PATHS:
            continue

        # Rows without noise are those of the pipeline
        for name, (keys, rows) in found.items():
            if name == "fused" or (kind == "noised" and name == "text"):
                continue
            of_store = raw.load(name)
            places = [of_store.keys.index(key) for key in keys]
            vectors = pipeline.transform(of_store.embeddings[places], modality=name)
            vectors = vectors.astype(np.float64)
            norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(rows, axis=1)
            assert ((vectors * rows).sum(axis=1) / norms).min() > 0.9999, (kind, name)
    assert outcomes == documented()[verb]


def test_an_old_export_of_an_export_is_named_as_such(home: Path, tmp_path: Path) -> None:
    raw = gap_store(tmp_path / "raw", 900, dtype="float32")
    first, second = tmp_path / "first", tmp_path / "second"
    c3tools.export_store(raw, output=first, preset="gr-clip", dtype="float32")
    # As earlier versions made it: nothing in it says what its rows went through before
    with patch.object(StoreInfo, "require_raw"):
        c3tools.export_store(first, output=second, preset="gr-clip", dtype="float32")
    assert Space.of(Store.open(first)).applied == 3
    assert len(Store.open(second).load("image")) == 900
    with pytest.warns(UserWarning, match=r"second was probably made from another export"):
        c3tools.cluster(second, output=tmp_path / "clusters")


def test_a_fitted_pipeline_is_used_with_numpy_alone(home: Path) -> None:
    code = (
        "import sys; sys.modules['pyarrow'] = sys.modules['torch'] = None\n"
        "import c3tools, numpy\n"
        "pipeline = c3tools.Pipeline.load(sys.argv[1])\n"
        "print(pipeline.transform(numpy.eye(16), modality='image').shape, pipeline.digest[:2])"
    )
    command = [sys.executable, "-c", code, str(home / "finished")]
    printed = subprocess.run(command, check=False, capture_output=True, text=True)
    digest = Pipeline.load(home / "finished").digest
    assert printed.stdout == f"(16, 16) {digest[:2]}\n", printed.stderr


def test_rows_of_a_shorter_pipeline_are_on_the_way_to_a_longer_one(home: Path) -> None:
    """c1 normalises, with which c3 begins."""
    whole = Pipeline.load(home / "finished")
    target = Space.after(whole, "a result")
    on_the_way = Space.after(whole.part(0, 1), "rows")
    assert [step.kind for step in target.path_from(on_the_way).steps] == [
        "collapse",
        "gaussian-noise",
        "normalize",
    ]
    with pytest.raises(TransformError, match=r"Rows of a result .* cannot be used with rows"):
        on_the_way.path_from(target)
