"""Embed, kill, add files, break files, verify, repair, export in random order; invariants checked after each step.

    python benchmarks/soak.py --minutes 30 --seed 0

Works in a temporary folder on copies of the bundled photos and small generated images. After every step: nothing is
wrong in the store but what the script itself broke, and that is found. From time to time the store, brought up to date,
is compared with one that was made in a single run from the same files, key by key. The same seed takes the same steps
(where a kill hits depends on the machine). Ends with "no invariant broken", or with the step that broke one and exit
code 1.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from measuring import C3
from PIL import Image

from c3tools.assets.paths import PHOTOS
from c3tools.store import Store

SHARD_SIZE = "4"
UNFINISHED = ("pairing", "manifest", "unfinished", "empty")  # checks of `c3 verify` that speak after a kill
SAME = 2e-3  # rows may be batched with others after a repair, which changes the last bits of float16


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
        with subprocess.Popen(
            self.command(*self.embedding()), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                process.wait(self.draw.uniform(0.5, 12))
            except subprocess.TimeoutExpired:
                process.kill()
        self.damaged = self.damaged and None

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
        """Check that a whole store can be exported, and the export has its rows."""
        self.repair()
        if len(Store.open(self.store).modalities) < 2:
            return
        self.run("export", "--store", self.store, "--preset", "c1", "--output", self.folder / "export")
        shutil.rmtree(self.folder / "export")

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
        names = ["add", "embed", "kill", "kill", "damage", "repair", "export", "compare"]
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
        done = ", ".join(f"{count} x {step}" for step, count in sorted(soak.steps.items()))
        print(f"{sum(soak.steps.values())} steps ({done}), {len(soak.rows)} images with captions: no invariant broken")


if __name__ == "__main__":
    main()
