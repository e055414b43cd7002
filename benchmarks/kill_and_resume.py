"""Kill a training at random moments, continue it, and compare the weights with those of an uninterrupted training.

    python benchmarks/kill_and_resume.py                      # 3 kills, about 4 minutes on 2 cores
    python benchmarks/kill_and_resume.py --store c3-store --kills 8 --size small

Runs `c3 train-decoder --precision fp32 --device cpu` in processes of their own: once without interruption, and once
with the same settings, killed at random moments and started again until it finishes. A training saves its state after
every epoch and every 30 seconds. Without --store, the bundled captions are embedded first. It should print that the
sha256 of both weights files is the same, and exit with 0.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from c3tools.assets.paths import CAPTIONS


def main() -> None:
    """Train twice and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, default=None)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--train-fraction", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0, help="of the times at which the training is killed")
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = options.store or folder / "store"
        if options.store is None:
            run("embed", CAPTIONS, "--store", store)
        settings = ["train-decoder", "--store", store, "--sigma", "0.05", "--size", options.size]
        settings += ["--epochs", options.epochs, "--train-fraction", options.train_fraction]
        settings += ["--precision", "fp32", "--device", "cpu"]
        started = time.monotonic()
        run(*settings, "--output", folder / "whole")
        whole = time.monotonic() - started
        draw = random.Random(options.seed)
        kills = resumed = 0
        while kills < options.kills:
            begun = time.monotonic()
            process = start(*settings, "--output", folder / "killed")
            try:
                process.communicate(timeout=draw.uniform(0.25, 0.8) * whole)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
                saved = sorted((folder / ".killed.run").glob("state-*.safetensors"))
                print(f"kill {kills} after {time.monotonic() - begun:.1f} s; saved: {[path.stem for path in saved]}")
                resumed += bool(saved)
            else:  # what was left of the training ended before the kill: begin again
                shutil.rmtree(folder / "killed")
        run(*settings, "--output", folder / "killed")
        digests = [digest(folder / name / "weights.safetensors") for name in ("whole", "killed")]
        print(f"whole   {digests[0]}\nkilled  {digests[1]}\n{resumed} of the kills left a state to continue from")
        same = digests[0] == digests[1]
        print("the same weights" if same else "DIFFERENT weights")
        sys.exit(0 if same else 1)


def start(*arguments: object) -> subprocess.Popen[bytes]:
    """Start the command in a process of its own."""
    code = "from c3tools.cli import main; main()"
    command = [sys.executable, "-c", code, *(str(argument) for argument in arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def run(*arguments: object) -> None:
    """Run the command to its end."""
    if start(*arguments).wait():
        raise SystemExit(f"c3 {' '.join(map(str, arguments))} failed")


def digest(path: Path) -> str:
    """sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
