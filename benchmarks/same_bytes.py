"""Check that two commits of c3tools write the same bytes, to show that a restructuring changed no behaviour.

    python benchmarks/same_bytes.py --before 9afebd9 --after HEAD
    python benchmarks/same_bytes.py --before 9afebd9 --after 9afebd9      # what differs between two runs of one commit
    python benchmarks/same_bytes.py --work FOLDER                         # keeps both installations for the next time

Installs both commits in environments of their own, with the same versions of everything else. Then it runs the same
commands with both on the bundled photos, in turn, in two project folders, with one thread, in fp32 on the CPU. After
every command it compares the output, the exit code, and every file that is new, changed or gone. Values that differ
between any two runs (`VARYING`, measured times) are masked first; intended differences are listed in `EXPECTED`.

Takes 3 GB of disk, a minute for each installation, and 5 minutes of processor time for the commands. It should print a
table without differences and exit with 0; otherwise it lists the first difference of each file and exits with 1.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import zip_longest
from pathlib import Path

from measuring import print_table

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = "cpu,eval"
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # torch counts by the first
MOMENT = 1_000_000_000  # when every photo was last changed
SHOWN = 160  # characters of a differing line
SECONDS = r'"seconds": [\d.e+-]+'

# a pattern of files, or of "stdout of COMMAND"; what in them varies between two runs of one commit; what that is
VARYING: tuple[tuple[str, str, str], ...] = (
    ("stdout of train-decoder *", r" [\d,]+ +│?$", "its column of tokens per second"),
    ("stdout of train-decoder *", SECONDS, "time of an epoch"),
    ("*/decoder.json", SECONDS, "time of an epoch"),
    ("stdout of embed *", r"[\d,.]+( │)? +[\d,.]+ +│?$", "its columns of rates and seconds"),
    ("stdout of embed *", r'"(reading|decoding|waiting|tokenising|encoding|writing)": [\d.e-]+', "time of a stage"),
    ("stdout of embed *", r'"(elapsed|rate)": [\d.e-]+', "time, and items per second"),
    (
        "all/*/_part-*.json",
        r'"timings": \{[^}]*\}',
        "time by stage with its checksum, not in the marker's own",
    ),
    ("exports/*/_part-*.json", SECONDS, "time of writing a part"),
    ("stdout of ablate *", SECONDS, "time of a cell"),
    ("c3-ablation/cells/*.json", SECONDS, "time of a cell and of its epochs"),
    ("stdout of connect heads *", SECONDS, "time of training"),
    ("c3-heads/*.json", SECONDS, "time of training"),
    ("c3-heads/README.md", r"; [\d,]+ s \|$", "time of training"),
)
# progress, which is a bar or, where standard error is no terminal, a line now and then: neither is compared
PROGRESS = r"^.*\d/(\d[\d,]*|\?) .*\beta\b.*\n?|^.*: [\d,]+( of [\d,]+)?, [\d,.]+/s, .* elapsed.*\n?"
# a pattern as above, and why what it names may differ between the two commits
EXPECTED: Mapping[str, str] = {
    "stdout of *--help": "help is worded more plainly",
    "stdout of embed corpus --store all * fp32": "one style of tables",
    "stdout of means --store merged --load *": "one style of tables",
    "stdout of train-decoder * -o c3-decoder-c1 *": "one style of tables",
    "stdout of caption * fp32": "one style of tables; captions are compared by --json",
    "stdout of evaluate * --coco coco.json": "one style of tables; scores are compared by --json",
    "stdout of ablate * fp32": "one style of tables; scores are compared by --json",
    "stdout of gap-report * --html *": "the terminal shows the sections of the page; figures are compared by --json",
    "gap-*.html": "one template for every report, with the sections of the terminal",
    "c3-ablation/table.html": "rules that nothing used are gone from the shared style sheet",
    "stderr of train-decoder --store store --sigma much": "every sigma is checked by one function",
}

CPU = "--device cpu --precision fp32"
PHOTO = "corpus/000000000285.jpg"
PHOTOS = f"{PHOTO} corpus/000000000790.jpg corpus/000000000872.jpg"
TINY = f"--size tiny --epochs 2 {CPU}"
HELP = (
    "embed,import,means,gap-report,export,train-decoder,caption,evaluate,ablate,index,search,verify,merge,split,demo,"
    "models,info,connect,connect heads,connect apply,connect lit,connect full,simulate,simulate depth"
)
BEFORE_EXPORTS = (
    f"embed corpus --store all {CPU} --json",
    f"embed corpus --store all {CPU}",
    "split store --store all --fractions 0.6,0.2,0.2 --json",
    "merge merged all store --prefix --json",
    "verify store --json",
    "verify merged",
    "means --store store --save means.safetensors --json",
    "means --store merged --load c3-mini",
    "means --store merged --json",
    "gap-report store --json --figures figures",
    "gap-report store --split test --html gap-of-test.html",
    "export --list --json",
    "export --store store --format npy -o exports/npy --json",
    "export --store store --format safetensors --dtype float32 --role inference -o exports/safetensors",
    "export --store store --format hf --preset c1 -o exports/hf",
    "export --store store --format faiss --preset c2-collapse -o exports/faiss --json",
)
AFTER_EXPORTS = (
    "export --store store --pipeline exports/c3 --epoch 1 -o exports/again --json",
    "import --image exports/npy/image/embeddings/part-00000.npy --store imported --json",
    f"train-decoder --store store --sigma 0.1 --size tiny --epochs 12 --set batch_size=16 {CPU} --json",
    f"train-decoder --store store --monitor cross-modal --preset c1 -o c3-decoder-c1 {TINY}",
    f"train-decoder --store store --from c3-decoder --pairs 0.5 -o c3-decoder-pairs {TINY} --json",
    f"caption {PHOTOS} {CPU} --json",
    f"caption {PHOTOS} --beams 3 {CPU}",
    f"caption {PHOTOS} --top-p 0.9 {CPU} --json",
    f"caption {PHOTO} --steer magic {CPU}",
    f"evaluate --store store {CPU} --json evaluation.json --coco coco.json",
    f"evaluate --store store --decoder c3-decoder-pairs --clip-score --against evaluation.json {CPU} --json",
    "index --store store --json",
    "search 'a red car' --store store --device cpu --json",
    f"search --image {PHOTO} --store store --device cpu --json",
    "search --key 000000000285 --store store --in text",
    f"ablate --store store --methods C1,C3 --seeds 1 --size tiny --epochs 1 {CPU} --json",
    f"ablate --store store --methods C3 --seeds 2 --size tiny --epochs 1 {CPU}",
    f"connect heads --store store --epochs 2 --batch-size 64 {CPU} --json",
    "connect apply c3-heads --store store --json",
    "simulate depth --rows 200 --layers 10 --json",
    "simulate stable-region --draws 200 --largest-n 50",
    "demo --photos-to photos",
    "models mini --json",
)
MEANT_TO_FAIL = (
    "verify nowhere",
    "export --store store --preset nothing",
    "export --store store --preset c1 -o exports/c3",
    "train-decoder --store store --sigma much",
    "caption nowhere.jpg",
    "search --key nothing --store store",
    "merge another store",
    "embed nowhere --store store",
)


@dataclass
class Side:
    """A commit, where it is installed and runs, and what its project folder held after the last command."""

    folder: Path
    commit: str
    held: dict[str, int] = field(default_factory=dict)

    @property
    def project(self) -> Path:
        """Return the folder that its commands run in."""
        return self.folder / "project"

    def python(self, *words: object) -> str:
        """Run its Python to the end, and return what it printed; a failure ends the comparison."""
        command = [str(self.folder / "venv" / "bin" / "python"), *map(str, words)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=self.folder).stdout

    def run(self, command: str) -> dict[str, bytes]:
        """Run a command of c3, and return what it printed and its exit code."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("C3_", "PYTHON"))}
        environment |= dict.fromkeys(ONE_THREAD, "1") | {"COLUMNS": "200", "TERM": "dumb"}
        words = [str(self.folder / "venv" / "bin" / "c3"), *shlex.split(command)]
        done = subprocess.run(words, cwd=self.project, env=environment, capture_output=True, check=False)
        with (self.folder / "outputs.txt").open("ab") as outputs:
            outputs.write(b"$ c3 %s\n%s%s" % (command.encode(), done.stdout, done.stderr))
        return {"stdout": done.stdout, "stderr": done.stderr, "exit code": str(done.returncode).encode()}

    def changed(self) -> set[str]:
        """Return the files and folders that are new, changed or gone since the last call."""
        known, self.held = self.held, {}
        for path in self.project.rglob("*"):
            name = f"{path.relative_to(self.project)}{'/' * path.is_dir()}"
            self.held[name] = 0 if path.is_dir() else path.stat().st_mtime_ns
        return {name for name in known.keys() | self.held.keys() if known.get(name) != self.held.get(name)}

    def read(self, name: str) -> bytes | None:
        """Return the content of a file of its project, nothing for a folder; None where it is not there."""
        if name not in self.held:
            return None
        return b"" if name.endswith("/") else (self.project / name).read_bytes()


def main() -> None:
    """Install both commits, run and compare the commands, and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="9afebd9")
    parser.add_argument("--after", default="HEAD")
    parser.add_argument("--work", type=Path, help="where both are installed, and stay; a temporary folder by default")
    parser.add_argument("--keep", action="store_true", help="keep the project folders, as is done if anything differs")
    options = parser.parse_args()
    work = Path(options.work or tempfile.mkdtemp(prefix="same-bytes-")).resolve()
    work.mkdir(parents=True, exist_ok=True)
    lock = (work / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(f"Another comparison runs in {work}: wait for it, or name another folder with --work.")
    before, after = (Side(work / name, commit_of(getattr(options, name))) for name in ("before", "after"))
    install(before, "")
    install(after, before.python("-m", "pip", "freeze", "--exclude", "c3tools"))
    for side in (before, after):
        lay_out(before.folder / "source", side)
    rows: list[tuple[str, int, int, int]] = []
    differences: list[tuple[str, str]] = []
    for command in commands(before):
        files, found = compare(command, before, after)
        rows.append((f"`c3 {command}`", files, files - len(found), len(found)))
        differences += found
    print(f"{before.commit} and {after.commit}\n")
    print_table(("command", "files", "equal", "differ"), rows)
    for label, text in differences:
        print(f"\n{label}{f' (expected: {expected(label)})' if expected(label) else ''}\n{text}")
    failures = sum(expected(label) is None for label, _ in differences)
    total = sum(files for _, files, _, _ in rows)
    print(f"\n{len(rows)} commands, {total} files and outputs: {len(differences)} differ, {failures} unexpectedly")
    if options.keep or failures:
        print(f"Both projects, and what the commands printed (outputs.txt), are in {work}.")
    else:
        for folder in (before.project, after.project) if options.work else [work]:
            shutil.rmtree(folder)
    sys.exit(1 if failures else 0)


def git(*words: str) -> bytes:
    """Run git in the repository, and return what it printed."""
    return subprocess.run(["git", "-C", str(ROOT), *words], check=True, stdout=subprocess.PIPE).stdout


def commit_of(ref: str) -> str:
    """Return the commit that a name stands for."""
    return git("rev-parse", "--verify", f"{ref}^{{commit}}").decode().strip()


def install(side: Side, constraints: str) -> None:
    """Install the commit with the versions in ``constraints``, unless just that is installed there."""
    source, versions, stamp = (side.folder / name for name in ("source", "constraints.txt", "installed.txt"))
    wanted = f"{side.commit}\n{constraints}"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    stamp.unlink(missing_ok=True)
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(git("archive", side.commit))) as archive:
        archive.extractall(source, filter="data")
    subprocess.run([sys.executable, "-m", "venv", str(side.folder / "venv")], check=True)
    versions.write_text(constraints)
    side.python("-m", "pip", "install", "--quiet", "--constraint", versions, f"{source}[{EXTRAS}]")
    side.python("-c", "import matplotlib.font_manager")  # looks for fonts the first time, and says so
    stamp.write_text(wanted)


def lay_out(source: Path, side: Side) -> None:
    """Make the project folder anew, with the bundled photos as `c3 demo --photos-to` copies them."""
    shutil.rmtree(side.project, ignore_errors=True)
    (side.folder / "outputs.txt").unlink(missing_ok=True)
    corpus = side.project / "corpus"
    corpus.mkdir(parents=True)
    bundled = source / "c3tools" / "assets" / "coco-cc"
    for path in [*sorted((bundled / "images").iterdir()), bundled / "captions.jsonl", bundled / "ATTRIBUTION.md"]:
        shutil.copyfile(path, corpus / path.name)
        os.utime(corpus / path.name, (MOMENT, MOMENT))
    side.changed()


def commands(side: Side) -> list[str]:
    """Return all commands, with an export of every preset that this side has."""
    presets = [entry["name"] for entry in json.loads(side.run("export --list --json")["stdout"])]
    exports = [f"export --store store --preset {name} --sigma 0.1 -o exports/{name} --json" for name in presets]
    helps = ["--help", *(f"{name} --help" for name in HELP.split(","))]
    return [*BEFORE_EXPORTS, *exports, *AFTER_EXPORTS, *MEANT_TO_FAIL, *helps]


def compare(command: str, before: Side, after: Side) -> tuple[int, list[tuple[str, str]]]:
    """Run a command on both sides, and return how many files and outputs it touched and those that differ."""
    printed, others = before.run(command), after.run(command)
    pairs: dict[str, tuple[bytes | None, bytes | None]]
    pairs = {f"{name} of {command}": (printed[name], others[name]) for name in printed}
    touched = before.changed() | after.changed()
    pairs |= {name: (before.read(name), after.read(name)) for name in sorted(touched)}
    found = [(label, text) for label, pair in pairs.items() if (text := differing(label, *pair))]
    if b"0" not in {printed["exit code"], others["exit code"]} and command not in MEANT_TO_FAIL:
        found.append((f"{command}, on both sides", f"  fails, which shows nothing: {printed['stderr'].decode()}"))
    return len(pairs), found


def differing(label: str, before: bytes | None, after: bytes | None) -> str | None:
    """Return the first difference of two contents in words; None where they are the same but for what varies."""
    if before == after:
        return None
    if before is None or after is None:
        return f"  only {'after' if before is None else 'before'}"
    try:
        texts = [masked(label, content.decode()).split("\n") for content in (before, after)]
    except UnicodeDecodeError:
        place = apart(before, after)
        shown = [f"{content[place : place + 16].hex(' ')} ({len(content)} bytes)" for content in (before, after)]
        return f"  byte {place}\n  before: {shown[0]}\n  after:  {shown[1]}"
    for number, (one, other) in enumerate(zip_longest(*texts, fillvalue=""), start=1):
        if one != other:
            start = max(0, apart(one, other) - SHOWN // 2)
            return f"  line {number}\n  before: {one[start : start + SHOWN]}\n  after:  {other[start : start + SHOWN]}"
    return None if len(texts[0]) == len(texts[1]) else "  an empty line at the end"


def apart(one: Sequence[object], other: Sequence[object]) -> int:
    """Return the first place at which two contents differ."""
    places = (place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    return next(places, min(len(one), len(other)))


def expected(label: str) -> str | None:
    """Return why this may differ; None where it may not."""
    return next((reason for pattern, reason in EXPECTED.items() if fnmatch(label, pattern)), None)


def masked(label: str, text: str) -> str:
    """Return a text without what varies between two runs of the same commit."""
    text = re.sub(PROGRESS, "", text, flags=re.MULTILINE) if label.startswith("stderr") else text
    for files, pattern, _ in VARYING:
        if fnmatch(label, files):
            text = re.sub(pattern, "<varies>", text, flags=re.MULTILINE)
    return text


if __name__ == "__main__":
    main()
