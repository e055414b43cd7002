"""What a Ray cluster costs on one machine: captions embedded by local processes and by as many Ray workers.

    python benchmarks/executors.py captions.jsonl

The first 20,000 captions, with the bundled model, on the same number of threads: one process with all of them, one
process for each, one Ray worker for each. Rounds go through all three in turn. The time starts when the model is
loaded: for processes with the first batch that is done, for Ray with a second call to workers that have done one batch
each; before that is start-up, which for Ray has that of its cluster in it. The stores are compared byte by byte.

Costs about two minutes a round on 2 cores. It should print an overhead of at most 15 % over local processes, and that
the stores are the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from embed_texts import read_captions
from measuring import print_table

from c3tools.corpus import Corpus, TextItem
from c3tools.encoders import Encoder, load_encoder
from c3tools.executors import LocalExecutor, cores
from c3tools.executors.ray import RayExecutor
from c3tools.jobs.embedding import EmbedOptions, embed


@dataclass
class Clock:
    """A progress display that notes when the first inputs were done."""

    first: float | None = None

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Inputs are done."""
        self.first = self.first or time.perf_counter()

    def expect(self, total: int) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Contest:
    """What all contestants are given."""

    texts: list[TextItem]
    encoder: Encoder
    options: EmbedOptions
    processes: int

    def one_process(self, store: Path) -> tuple[float, float]:
        """All threads in this process."""
        torch.set_num_threads(self.processes)
        return self._timed(store, LocalExecutor())

    def local(self, store: Path) -> tuple[float, float]:
        """A process for each thread."""
        return self._timed(store, LocalExecutor(["cpu"] * self.processes))

    def ray(self, store: Path) -> tuple[float, float]:
        """A Ray worker for each thread."""
        start = time.perf_counter()
        few = [text._replace(key=f"{number}") for number, text in enumerate(self.texts[: self.processes])]
        with RayExecutor("local", processes=self.processes) as executor, tempfile.TemporaryDirectory() as folder:
            embed(Corpus(images=[], texts=few), folder, self.encoder, EmbedOptions(shard_size=1), executor=executor)
            ready = time.perf_counter()
            embed(Corpus(images=[], texts=self.texts), store, self.encoder, self.options, executor=executor)
            end = time.perf_counter()
        return ready - start, end - ready

    def _timed(self, store: Path, executor: LocalExecutor) -> tuple[float, float]:
        """Seconds until the first batch is done, and from there on."""
        clock = Clock()
        start = time.perf_counter()
        corpus = Corpus(images=[], texts=self.texts)
        embed(corpus, store, self.encoder, self.options, track=lambda *_: nullcontext(clock), executor=executor)
        end = time.perf_counter()
        assert clock.first is not None
        return clock.first - start, end - clock.first


def content(store: Path) -> dict[str, bytes]:
    """All bytes of a store, without the timings in done markers."""
    found = {}
    for path in sorted(path for path in store.rglob("*") if path.is_file() and path.name != ".lock"):
        value = path.read_bytes()
        if path.parent != store and path.suffix == ".json":
            value = json.dumps({**json.loads(value), "timings": None}).encode()
        found[str(path.relative_to(store))] = value
    return found


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", type=Path)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=cores())
    parser.add_argument("--shard-size", type=int, default=2000)
    parser.add_argument("--model", default="c3-mini")
    arguments = parser.parse_args()
    captions = read_captions(arguments.captions, arguments.count)
    texts = [TextItem(f"{number:06d}", caption, None, None) for number, caption in enumerate(captions)]
    options = EmbedOptions(shard_size=arguments.shard_size)
    contest = Contest(texts, load_encoder(arguments.model, precision="fp32"), options, arguments.processes)
    processes = arguments.processes
    contestants: dict[str, Callable[[Path], tuple[float, float]]] = {
        f"local, 1 process of {processes} threads": contest.one_process,
        f"local, {processes} processes": contest.local,
        f"ray, {processes} workers": contest.ray,
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory() as folder:
        stores: dict[str, Path] = {}
        for number in range(arguments.rounds):
            for name, measure in contestants.items():
                stores[name] = Path(folder) / f"{name}-{number}"
                times[name].append(measure(stores[name]))
                started, then = times[name][-1]
                print(f"round {number + 1}, {name}: {started:.1f} s, then {then:.2f} s", file=sys.stderr, flush=True)
        _, local, ray = (content(store) for store in stores.values())
    _, local_name, ray_name = contestants
    print(
        f"{len(texts):,} captions in shards of {arguments.shard_size:,}, {arguments.model}, {arguments.rounds} rounds"
    )
    rows = []
    for name, measured in times.items():
        seconds = [after for _, after in measured]
        ratios = [after / local for (_, after), (_, local) in zip(measured, times[local_name], strict=True)]
        rows.append(
            (
                name,
                f"{statistics.median(start for start, _ in measured):.1f}",
                f"{statistics.median(seconds):.2f}",
                f"{min(seconds):.2f} to {max(seconds):.2f}",
                f"{len(texts) / statistics.median(seconds):,.0f}",
                f"{statistics.median(ratios) - 1:+.1%}",
            )
        )
    print_table(("", "start-up, s", "then, s", "range", "captions/s", f"against {local_name}"), rows)
    print(f"Stores of {local_name} and {ray_name}: {'the same' if local == ray else 'DIFFERENT'}, byte by byte.")


if __name__ == "__main__":
    main()
