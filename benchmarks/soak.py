"""Embed, read, kill, break, repair, export, train, fill the disk in random order; invariants checked after each step.

    python benchmarks/soak.py --minutes 120 --seed 0

Works in a temporary folder on copies of the bundled photos and small generated images. After every step: nothing is
wrong in the store but what the script itself broke, and that is found. A store is read while it is written; exports and
trainings of a decoder and of a generator are killed and continued; a copy of the store is filled up on a file system
that is too small for it (a tmpfs, which needs root; otherwise the step is left out). From time to time the store,
brought up to date, is compared with one that was made in a single run from the same files, key by key. The same seed
takes the same steps (where a kill hits depends on the machine). Ends with "no invariant broken", or with the step that
broke one and exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from measuring import C3
from PIL import Image

from c3tools import Captioner, Generator
from c3tools.assets.paths import PHOTOS
from c3tools.errors import C3Error
from c3tools.export import FORMATS
from c3tools.store import Store

SHARD_SIZE = "4"
UNFINISHED = ("pairing", "manifest", "unfinished", "empty")  # checks of `c3 verify` that speak after a kill
SAME = 2e-3  # rows may be batched with others after a repair, which changes the last bits of float16
LEAST = 24  # images with captions that a training is tried with
TRAININGS = {
    "decoder": ("--set", "width=48", "--set", "layers=1", "--set", "vocab_size=300", "--size", "tiny", "--epochs", 8),
    "generator": ("--set", "batch_size=8", "--size", "tiny", "--steps", 24),
}


class BrokenError(Exception):
    """An invariant that does not hold."""


class Soak:
    """A corpus, a store, and what is known to be wrong with it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.draw = random.Random(seed)
        self.corpus, self.store = folder / "corpus", folder / "store"
        self.corpus.mkdir()
        self.rows: list[dict[str, object]] = []
        lines = (PHOTOS / "captions.jsonl").read_text(encoding="utf-8").splitlines()
        self.unused = sorted((json.loads(line) for line in lines), key=lambda row: row["image"])
        self.draw.shuffle(self.unused)
        self.damaged: bool | None = False  # None: perhaps, since a run mends the list of failures
        self.steps: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()  # what happened in steps
        self.take_photo()
        self.add()

    def command(self, *words: object) -> list[str]:
        """Return a command of c3 with its words."""
        return [*C3, *(str(word) for word in words)]

    def run(self, *words: object, allowed: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, check=False)
        if done.returncode not in allowed:
            raise BrokenError(f"{' '.join(map(str, words))} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        return done

    def embedding(self) -> list[object]:
        """Return the command that embeds the corpus."""
        return ["embed", self.corpus, "--store", self.store, "--shard-size", SHARD_SIZE, "--workers", "0"]

    def add(self) -> None:
        """Add new photos, generated images, or a file that is no image."""
        for _ in range(self.draw.randint(1, 5)):
            kind = self.draw.choice(["photo", "small", "small", "broken"])
            number = len(list(self.corpus.iterdir()))
            if kind == "photo" and self.unused:
                self.take_photo()
            elif kind == "broken":
                (self.corpus / f"broken{number:04d}.jpg").write_bytes(self.draw.randbytes(self.draw.randint(0, 200)))
            else:
                name = f"small{number:04d}.png"
                pixels = np.frombuffer(self.draw.randbytes(16 * 16 * 3), np.uint8).reshape(16, 16, 3)
                Image.fromarray(pixels).save(self.corpus / name)
                self.rows.append({"image": name, "captions": [f"pattern number {number}"]})
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        (self.corpus / "captions.jsonl").write_text(text, encoding="utf-8")

    def take_photo(self) -> None:
        """One of the bundled photos, with its captions."""
        row = self.unused.pop()
        shutil.copyfile(PHOTOS / "images" / row["image"], self.corpus / row["image"])
        self.rows.append(row)

    def embed(self) -> None:
        """Embed what is new; a damaged store may be refused."""
        self.run(*self.embedding(), allowed=(0,) if self.damaged is False else (0, 1))
        self.damaged = self.damaged and None

    def kill(self) -> None:
        """Embed, and be killed at any moment."""
        self.run_killed(self.embedding())
        self.damaged = self.damaged and None

    def run_killed(self, words: Sequence[object], longest: float = 12) -> None:
        """Run a command, and kill it after up to ``longest`` seconds if it has not ended."""
        with self.started(words) as process:
            try:
                process.wait(self.draw.uniform(0.5, longest))
            except subprocess.TimeoutExpired:
                process.kill()

    def started(self, words: Sequence[object]) -> subprocess.Popen[bytes]:
        """Start a command that nobody listens to."""
        return subprocess.Popen(self.command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def read(self) -> None:
        """Embed, and read the store all the while: what can be seen of it is whole."""
        self.add()
        reads = 0
        with self.started(self.embedding()) as process:
            while process.poll() is None:
                if self.damaged is False and (self.store / "store.json").exists():
                    self.check_rows(Store.open(self.store, incomplete=True))
                    reads += 1
                time.sleep(0.02)
        if process.returncode and self.damaged is False:
            raise BrokenError(f"embed ended with {process.returncode} while it was read")
        self.damaged = self.damaged and None
        self.seen["reads meanwhile"] += reads

    def check_rows(self, store: Store) -> None:
        """Rows have keys of their own and length 1, as embeddings of a store do."""
        try:
            for rows in [store.load(modality) for modality in store.modalities]:
                norms = np.linalg.norm(rows.embeddings, axis=1)
                if len(set(rows.keys)) < len(rows) or np.abs(norms - 1).max(initial=0) > SAME:
                    raise BrokenError(f"{store.path}: {rows.modality} rows repeat, or are not of length 1")
        except C3Error as error:
            raise BrokenError(f"a reader fails while the store is written: {error}") from error

    def damage(self) -> None:
        """Change a byte of any file of the store, or remove a file of a shard."""
        markers = sorted(self.store.glob("*/_part-*.json"))
        files = [*markers, *self.store.glob("*.json"), *self.store.glob("*.parquet")]
        files += [m.with_name(m.name[1:]).with_suffix(".parquet") for m in markers]
        files += [m.with_suffix(".moments.safetensors") for m in markers]
        if not files:
            return
        path = self.draw.choice(sorted(path for path in files if path.exists()))
        if path.parent != self.store and self.draw.random() < 0.3:
            path.unlink()
            # without its marker, a shard that is not recorded yet is unfinished, and not damaged
            self.damaged = (self.damaged or None) if path.suffix == ".json" else True
            return
        content = bytearray(path.read_bytes())
        place = self.draw.randrange(len(content))
        if path.name == "store.json" and chr(content[place]).isdigit():
            return  # it could become a newer format version, which is refused rather than repaired
        content[place] ^= self.draw.randrange(1, 256)
        path.write_bytes(content)
        self.damaged = True

    def verify(self) -> None:
        """Nothing is wrong but what was broken, and what was broken is found."""
        if not (self.store / "store.json").exists():
            return
        done = self.run("verify", self.store, "--json", "-", allowed=(0, 1, 3))
        if self.damaged is False:
            # texts may wait for images that a killed run has not embedded yet, and it has recorded nothing
            value = json.loads(done.stdout) if done.stdout else {"findings": []}
            wrong = [f for f in value["findings"] if f["level"] == "defect" and f["check"] not in UNFINISHED]
            if wrong:
                raise BrokenError(f"defects that nobody made: {wrong}")
        elif self.damaged and done.returncode == 0:
            raise BrokenError("damage was not found")

    def repair(self) -> None:
        """Repair, embed again: whole."""
        if (self.store / "store.json").exists():
            self.run("verify", self.store, "--repair", allowed=(0, 1, 3))
        self.damaged = False
        self.embed()
        done = self.run("verify", self.store)
        if "complete and undamaged" not in done.stdout:
            raise BrokenError(f"not whole after repair: {done.stdout} {done.stderr}")

    def export(self) -> None:
        """Export a whole store over the export before, be killed, and continue: all rows are there."""
        self.repair()
        store = Store.open(self.store)
        if len(store.modalities) < 2:
            return
        preset, format_ = self.draw.choice(["c1", "c3"]), self.draw.choice(FORMATS)
        words = ["export", "--store", self.store, "--preset", preset, "--format", format_]
        words += ["--output", self.folder / "export", "--overwrite", "--json"]
        self.run_killed(words, 4)
        found = json.loads(self.run(*words).stdout)["rows"]
        for modality in store.modalities:
            if sum(found[modality].values()) != store.count(modality):
                raise BrokenError(f"{modality}: {store.count(modality)} rows, exported {found[modality]}")

    def train(self) -> None:
        """Train a decoder or a generator in place of the one before, be killed, continue: the result can be loaded."""
        self.repair()
        if len(self.rows) < LEAST:
            return
        kind = self.draw.choice(sorted(TRAININGS))
        output = self.folder / kind
        words = [f"train-{kind}", "--store", self.store, "--sigma", "0.1", "--output", output, "--overwrite"]
        words += [*TRAININGS[kind], "--seed", self.draw.randrange(3)]
        self.run_killed(words, 20)
        self.run(*words)
        if "nothing to do" not in self.run(*words).stderr:
            raise BrokenError(f"the {kind} that is there is not taken for the one that was asked for")
        Captioner.load(output) if kind == "decoder" else Generator.load(output)
        left = [path.name for path in self.folder.glob(f".{kind}.*")]
        if left:
            raise BrokenError(f"the training left {left}")

    def fill_disk(self) -> None:
        """Embed on a file system that becomes full: one error, then, with more room, a whole store."""
        self.repair()
        small, size = self.folder / "small", sum(path.stat().st_size for path in self.store.rglob("*"))
        small.mkdir(exist_ok=True)
        room = size + 4096 * len(list(self.store.rglob("*"))) + self.draw.randrange(150_000)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "c3-soak", str(small)]
        if os.geteuid() or subprocess.run(mount, check=False).returncode:
            self.seen["fill_disk left out"] += 1
            return
        try:
            shutil.copytree(self.store, small / "store", dirs_exist_ok=True)
            for _ in range(6):
                self.add()
            words = [*self.embedding(), "--store", small / "store"]
            done = self.run(*words, allowed=(0, 1))
            if done.returncode:
                self.seen["disks that were full"] += 1
                if "No space left" not in done.stderr or "Traceback" in done.stderr:
                    raise BrokenError(f"a full disk is not told as one: {done.stderr[-2000:]}")
            subprocess.run(["mount", "-o", "remount,size=1G", small], check=True)
            self.run(*words)
            if "complete and undamaged" not in " ".join((said := self.run("verify", small / "store").stdout).split()):
                raise BrokenError(f"the store is not whole after the disk was full: {said}")
        finally:
            subprocess.run(["umount", small], check=True)

    def compare(self) -> None:
        """Brought up to date, the store has the rows of one that was made at once."""
        self.repair()
        shutil.rmtree(self.folder / "fresh", ignore_errors=True)
        self.run("embed", self.corpus, "--store", self.folder / "fresh", "--workers", "0")
        one, other = Store.open(self.store), Store.open(self.folder / "fresh")
        if one.modalities != other.modalities:
            raise BrokenError(f"modalities {one.modalities} and {other.modalities}")
        for modality in one.modalities:
            first, second = one.load(modality), other.load(modality)
            if sorted(first.keys) != sorted(second.keys):
                raise BrokenError(f"{modality}: {len(first)} and {len(second)} keys, or others")
            order = [np.argsort(rows.keys) for rows in (first, second)]
            apart = np.abs(first.embeddings[order[0]] - second.embeddings[order[1]]).max(initial=0)
            if apart > SAME:
                raise BrokenError(f"{modality}: embeddings differ by {apart:.2g}")
        failed = [sorted(f.key for f in store.recorded_failures()) for store in (one, other)]
        if failed[0] != failed[1]:
            raise BrokenError(f"failures {failed[0]} and {failed[1]}")

    def step(self) -> str:
        """Do one thing and check."""
        names = ["add", "embed", "kill", "kill", "damage", "repair", "read", "export", "train", "fill_disk", "compare"]
        name = self.draw.choice(names)
        self.steps[name] += 1
        getattr(self, name)()
        self.verify()
        return name


def main() -> None:
    """Go on for some minutes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as temporary:
        soak = Soak(Path(temporary), arguments.seed)
        name = "start"
        try:
            while time.monotonic() < end:
                name = soak.step()
                print(f"{sum(soak.steps.values())}: {name}", file=sys.stderr, flush=True)
        except BrokenError as error:
            kept = Path(tempfile.mkdtemp()) / "soak"
            shutil.copytree(temporary, kept)
            print(f"after {dict(soak.steps)}: {error}\nkept in {kept}")
            sys.exit(1)
        done = ", ".join(f"{count} x {step}" for step, count in sorted((soak.steps + soak.seen).items()))
        print(f"{sum(soak.steps.values())} steps ({done}), {len(soak.rows)} images with captions: no invariant broken")


if __name__ == "__main__":
    main()
