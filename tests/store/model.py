"""A state machine of a store: whatever is done to it, it holds what a dictionary in memory says it holds.

A step changes the corpus (adds, changes, breaks or removes an image or its captions), embeds it, kills a run at one of
its operations on files (with what a power cut may take), damages and repairs the store, reads it while it is written,
or merges, splits or exports it. The encoder is a double: the embedding of an image is its colour, that of a text its
digest. Everything runs in this process, on real files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from PIL import Image

from c3tools.corpus import read_corpus
from c3tools.devices import Compute
from c3tools.embedding import embed_corpus
from c3tools.encoders import Encoder
from c3tools.encoders.backends.base import Backend
from c3tools.encoders.preprocessing import ImagePreprocessor, Squash
from c3tools.export import export_store
from c3tools.store import Store
from c3tools.store.merge import merge_stores
from c3tools.store.split import split_store
from c3tools.store.verify import verify_store
from tests.crashes.recorder import Recorder, State, recording, write_tree

DIM = 8
SHARD_SIZE = 3
NAMES = st.sampled_from([f"photo{number}" for number in range(7)])
COLOURS = st.tuples(*[st.integers(0, 255)] * 3)
CAPTIONS = st.lists(
    st.sampled_from(["a dog", "a red cat", "snow", "いぬ", 'two, "quoted" words']), min_size=1, max_size=3
)
SPLITS = st.sampled_from([None, None, "train", "val"])
RowName = tuple[str, str]  # modality and key


@dataclass(frozen=True)
class Done:
    """A batch that is computed."""

    vectors: np.ndarray[Any, Any]

    def result(self) -> np.ndarray[Any, Any]:
        return self.vectors


class Colours(Backend):
    """Towers that need no model."""

    name, compute = "torch", Compute("cpu", "fp32")

    def submit(self, modality: str, batch: Any) -> Done:
        values = np.asarray(batch)
        rows = [embedding(image[0, 0] if modality == "image" else row_text(image)) for image in values]
        return Done(np.stack(rows))


def row_text(tokens: np.ndarray[Any, Any]) -> str:
    return bytes(int(token) - 1 for token in tokens if token).decode()


def tokenise(texts: list[str]) -> list[list[int]]:
    return [[byte + 1 for byte in text.encode()] + [0] * (64 - len(text.encode())) for text in texts]


def embedding(content: Any) -> np.ndarray[Any, Any]:
    """Return a unit vector, float32 (DIM,), of a colour or a text."""
    name = content if isinstance(content, str) else "colour " + " ".join(str(int(value)) for value in content)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    row = np.random.default_rng(seed).normal(size=DIM)
    unit: np.ndarray[Any, Any] = (row / np.linalg.norm(row)).astype(np.float32)
    return unit


def colour_encoder() -> Encoder:
    size = (2, 2)
    preprocess = ImagePreprocessor((Squash(size),), size, (0.5,) * 3, (0.5,) * 3, {"size": 2})
    identity = {"name": "colours", "weights_sha256": "0" * 64}
    return Encoder(Colours(), tokenise, preprocess, identity=identity, trims_texts=False, dim=DIM)


@dataclass
class Model:
    """What a store is to hold.

    Attributes:
        rows: a colour or a caption, by modality and key.
        failed: keys of images that could not be read.
    """

    rows: dict[RowName, Any] = field(default_factory=dict)
    failed: frozenset[str] = frozenset()

    def merged(self, other: Model) -> Model:
        """Return what a merge with another store holds that keeps the rows of this one."""
        rows = {**other.rows, **self.rows}
        return Model(rows, frozenset(key for key in self.failed | other.failed if ("image", key) not in rows))


class StoreMachine(RuleBasedStateMachine):
    """Steps on one store; ``steps`` counts those of all machines."""

    steps: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="c3-model-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.corpus, self.store = self.folder / "corpus", self.folder / "store"
        self.corpus.mkdir()
        self.encoder = colour_encoder()
        self.images: dict[str, Any] = {}  # colour by key; None for one that cannot be read
        self.captions: dict[str, list[str]] = {}
        self.named: dict[str, str | None] = {}  # the splits in the captions file
        self.splits: dict[str, str | None] = {}  # of the items that the store had at the last look
        self.touched: set[str] = set()  # images written since they were embedded, or were found broken
        self.model = Model()
        self.former: Model | None = None  # of the copy of the store that is kept for merges

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    # the corpus

    @initialize(colour=COLOURS)
    def begin(self, colour: tuple[int, int, int]) -> None:
        self._write("photo0", colour, ["a dog"], None)
        self.embed()

    @rule(name=NAMES, colour=COLOURS, captions=CAPTIONS, split=SPLITS)
    def write_image(self, name: str, colour: tuple[int, int, int], captions: list[str], split: str | None) -> None:
        self._write(name, colour, captions, split)
        self.steps["add or change"] += 1

    @rule(name=NAMES, captions=CAPTIONS, split=SPLITS)
    def break_image(self, name: str, captions: list[str], split: str | None) -> None:
        self._write(name, None, captions, split)
        self.steps["break an image"] += 1

    @precondition(lambda self: len(self.images) > 1)
    @rule(data=st.data())
    def remove_image(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.images)))
        (self.corpus / f"{name}.png").unlink()
        del self.images[name], self.captions[name]
        self._write_captions()
        self.steps["remove"] += 1

    def _write(self, name: str, colour: tuple[int, int, int] | None, captions: list[str], split: str | None) -> None:
        path = self.corpus / f"{name}.png"
        if colour is None:
            path.write_bytes(b"\x89PNG\r\n")
        else:
            Image.new("RGB", (3, 3), colour).save(path)
        self.images[name], self.captions[name], self.named[name] = colour, captions, split
        self.touched.add(name)
        self._write_captions()

    def _write_captions(self) -> None:
        rows = [
            {"image": f"{name}.png", "captions": self.captions[name], "split": self.named[name]}
            for name in sorted(self.images)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.corpus / "captions.jsonl").write_text(text, encoding="utf-8")

    # embedding

    @rule()
    def embed(self) -> None:
        self._embed()
        self.model = self._after_embedding()
        self.steps["embed"] += 1

    @rule()
    def update(self) -> None:
        self._update()
        self.steps["embed --update --prune"] += 1

    def _update(self) -> None:
        self._embed(update=True)
        self.model = self._after_updating()
        self.touched.clear()

    def _embed(self, update: bool = False) -> None:
        embed_corpus(
            read_corpus([self.corpus]),
            self.store,
            self.encoder,
            shard_size=SHARD_SIZE,
            workers=0,
            update=update,
            prune=update,
        )

    def _after_embedding(self) -> Model:
        rows, failed = dict(self.model.rows), set(self.model.failed)
        for name, colour in self.images.items():
            if ("image", name) not in rows and name not in failed:
                if colour is None:
                    failed.add(name)
                else:
                    rows["image", name] = colour
        return Model({**self._texts(), **rows}, frozenset(failed))

    def _after_updating(self) -> Model:
        rows: dict[RowName, Any] = dict(self._texts())
        failed = set()
        for name, colour in self.images.items():
            if colour is not None:
                rows["image", name] = colour
            elif ("image", name) in self.model.rows:
                rows["image", name] = self.model.rows["image", name]  # stays as it was
            else:
                failed.add(name)
        return Model(rows, frozenset(failed))

    def _texts(self) -> dict[RowName, str]:
        return {
            ("text", f"{name}#{number}"): caption
            for name, captions in self.captions.items()
            for number, caption in enumerate(captions)
        }

    # crashes and readers

    @rule(update=st.booleans(), data=st.data())
    def kill(self, update: bool, data: st.DataObject) -> None:
        """Kill a run, perhaps several times, read what it left, perhaps repair it, and run the same command again."""
        after = self._after_updating() if update else self._after_embedding()
        for _ in range(data.draw(st.integers(1, 2), label="kills")):
            state = self._crash(update, data.draw(st.integers(0, 10_000), label="where"))
            write_tree(self.store, state.tree)
            if (self.store / "store.json").exists():
                self._check_any(Store.open(self.store, incomplete=True), self.model, after)
                if data.draw(st.booleans(), label="repair"):
                    verify_store(self.store, repair=True)
        (self._update if update else self.embed)()
        self.steps["kill"] += 1

    def _crash(self, update: bool, where: int) -> State:
        with recording(Recorder(self.store)) as recorder:
            self._embed(update)
        recorder.end()
        return recorder.states[where % len(recorder.states)]

    @rule(update=st.booleans())
    def read_while_writing(self, update: bool) -> None:
        """Read the store at each operation of a run: every row is the one before it or the one after it."""
        after = self._after_updating() if update else self._after_embedding()
        watcher = Watcher(
            self.store, lambda: self._check_any(Store.open(self.store, incomplete=True), self.model, after)
        )
        with recording(watcher):
            self._embed(update)
        if watcher.problem is not None:
            raise watcher.problem
        self.model = after
        if update:
            self.touched.clear()
        self.steps["read while writing"] += 1

    # damage

    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """Damage one file: it is found, repaired, and what was dropped comes back."""
        self._update()
        files = [path for path in sorted(self.store.rglob("*")) if path.is_file() and path.name != ".lock"]
        path = data.draw(st.sampled_from(files), label="file")
        content = path.read_bytes()
        kind = data.draw(st.sampled_from(["flip", "cut", "remove"]), label="damage")
        # a fraction, since the length of a marker depends on the times in it
        place = data.draw(st.integers(0, 9_999), label="where") * len(content) // 10_000
        if path.name == "store.json":
            kind = "cut"  # another digit could make it a newer version, which is refused rather than repaired
        if kind == "remove":
            path.unlink()
        elif kind == "cut":
            path.write_bytes(content[:place])
        else:
            flipped = bytes([content[place] ^ data.draw(st.integers(1, 255))])
            path.write_bytes(content[:place] + flipped + content[place + 1 :])
        assert not verify_store(self.store).whole, f"{kind} of {path.relative_to(self.folder)} is not found"
        verify_store(self.store, repair=True)
        kept = {name: row for name, row in self.model.rows.items() if self._comes_back(name)}
        there = self._rows(Store.open(self.store, incomplete=True))
        self.splits = self._item_splits(there)
        self.model = replace(self.model, rows=kept | {name: self.model.rows[name] for name in there})
        failed = {
            key for key, colour in self.images.items() if colour is None and ("image", key) not in self.model.rows
        }
        self.model = replace(self.model, failed=frozenset(failed))
        self._embed()
        self.steps["damage and repair"] += 1

    def _comes_back(self, name: RowName) -> bool:
        """Return whether the source of a row is there; a broken image that was embedded before is lost with its row."""
        return name[0] == "text" or self.images[name[1]] is not None

    @rule()
    def verify(self) -> None:
        result = verify_store(self.store)
        assert result.findings == [] or [f.check for f in result.findings] == ["empty"]
        self.steps["verify"] += 1

    # stores made from others

    @rule()
    def keep_copy(self) -> None:
        shutil.rmtree(self.folder / "former", ignore_errors=True)
        shutil.copytree(self.store, self.folder / "former")
        self.former = self.model
        self.steps["copy"] += 1

    @precondition(lambda self: self.former is not None)
    @rule(replaces=st.booleans())
    def merge(self, replaces: bool) -> None:
        assert self.former is not None
        merge_stores(self.folder / "merged", [self.store, self.folder / "former"], keep="first")
        merged = self.model.merged(self.former)
        self._check_store(self.folder / "merged", merged)
        self._replace_store(self.folder / "merged", merged, replaces)
        self.steps["merge"] += 1

    @rule(seed=st.integers(0, 3), replaces=st.booleans())
    def split(self, seed: int, replaces: bool) -> None:
        split_store(self.folder / "parted", self.store, fractions=(0.4, 0.3, 0.3), seed=seed)
        self._check_store(self.folder / "parted", self.model)
        if replaces:
            self.splits = {}
        self._replace_store(self.folder / "parted", self.model, replaces)
        self.steps["split"] += 1

    def _replace_store(self, other: Path, model: Model, replaces: bool) -> None:
        if replaces:
            shutil.rmtree(self.store)
            other.rename(self.store)
            self.model = model
        else:
            shutil.rmtree(other)

    @rule()
    def export(self) -> None:
        """Export over the export before: it has the rows, unchanged but for their dtype."""
        output = self.folder / "export"
        export_store(self.store, output, preset="c1", role="inference", workers=1, overwrite=True)
        found = {
            (path.parent.name, row["key"]): np.array(row["embedding"])
            for path in output.glob("*/*.parquet")
            for row in pq.read_table(path).to_pylist()
        }
        assert found.keys() == self.model.rows.keys(), found.keys() ^ self.model.rows.keys()
        for name, row in found.items():
            np.testing.assert_allclose(row, embedding(self.model.rows[name]), atol=2e-3)
        self.steps["export"] += 1

    # what always holds

    @invariant()
    def store_holds_what_the_model_says(self) -> None:
        if (self.store / "store.json").exists():
            self._check_store(self.store, self.model)
            splits = self._item_splits(self._rows(Store.open(self.store)))
            kept = self.splits.keys() & splits.keys()
            assert {item: splits[item] for item in kept} == {item: self.splits[item] for item in kept}
            self.splits = splits

    def _check_store(self, path: Path, model: Model) -> None:
        store = Store.open(path)
        found = self._rows(store)
        assert found.keys() == model.rows.keys(), found.keys() ^ model.rows.keys()
        for name, (row, _) in found.items():
            np.testing.assert_array_equal(row, embedding(model.rows[name]).astype(np.float16).astype(np.float32))
        self._item_splits(found)
        assert {failure.key for failure in store.recorded_failures()} == model.failed
        left = [path.name for path in self.folder.rglob("*") if path.name.endswith((".tmp", ".unfinished"))]
        assert left == []

    def _check_any(self, store: Store, *models: Model) -> None:
        """Check that each row that can be read is the one of one of the models."""
        for name, (row, _) in self._rows(store).items():
            allowed = [embedding(model.rows[name]).astype(np.float16) for model in models if name in model.rows]
            assert any(np.array_equal(row, values.astype(np.float32)) for values in allowed), f"{name} is another row"

    @staticmethod
    def _item_splits(rows: dict[RowName, tuple[np.ndarray[Any, Any], str | None]]) -> dict[str, str | None]:
        """Return the split of each item, in which all its rows are."""
        splits: dict[str, str | None] = {}
        for (modality, key), (_, split) in rows.items():
            item = key.rpartition("#")[0] if modality == "text" else key
            assert splits.setdefault(item, split) == split, f"{modality} {key} is in another split than its item"
        return splits

    @staticmethod
    def _rows(store: Store) -> dict[RowName, tuple[np.ndarray[Any, Any], str | None]]:
        """Return the embeddings of the rows, and the splits that they name."""
        found: dict[RowName, tuple[np.ndarray[Any, Any], str | None]] = {}
        for modality in store.modalities:
            if not store.count(modality):
                continue  # all its inputs failed
            rows = store.load(modality)
            for key, row, split in zip(rows.keys, rows.embeddings, rows.column("split"), strict=True):
                found[modality, key] = row, split
        return found


class Watcher(Recorder):
    """Calls a reader before each operation, and keeps the first problem it has."""

    def __init__(self, folder: Path, read: Callable[[], object]) -> None:
        super().__init__(folder)
        self._read = read
        self.problem: BaseException | None = None

    def _keep(self, before: str) -> None:
        if self.problem is None and (self.folder / "store.json").exists():
            try:
                self._read()
            except Exception as error:
                self.problem = error
