"""Measure the overhead of a Ray cluster on one machine, compared with local processes that embed the same captions.

    python benchmarks/executors.py captions.jsonl

The first 20,000 captions are embedded with the bundled model, by one local process per core with one thread each, and
by as many Ray workers. The rounds alternate between the two. The start-up time is measured with one caption per
process: every call starts its local processes again, so this time is measured in a separate call and subtracted; Ray
workers, whose start-up includes that of the cluster, stay for the second call. The rest is measured as wall-clock time
and as processor time of all processes together; on a busy machine, processor time is the more reliable of the two. The
stores are compared byte by byte.

Takes about a minute per round on 2 idle cores. It should print an overhead of at most 15 %, and that the stores are
the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from embed_texts import read_captions
from measuring import print_table, processor_seconds

from c3tools.corpus import Corpus, TextItem
from c3tools.embedding import embed_corpus
from c3tools.encoders import Encoder, load_encoder
from c3tools.executors import Executor, LocalExecutor, cores
from c3tools.executors.ray import RayExecutor


class Now(NamedTuple):
    """Seconds of the clock and of the processor."""

    clock: float
    processor: float

    @classmethod
    def read(cls) -> Now:
        """Both."""
        return cls(time.perf_counter(), processor_seconds())

    def since(self, start: Now) -> Now:
        """Both, from a moment on."""
        return Now(self.clock - start.clock, self.processor - start.processor)


@dataclass(frozen=True)
class Contest:
    """The work that all contestants are given."""

    texts: list[TextItem]
    encoder: Encoder
    shard_size: int
    processes: int

    def local(self, store: Path) -> tuple[Now, Now]:
        """Time a process for each thread: start-up, and the rest."""
        executor = LocalExecutor(["cpu"] * self.processes)
        start = Now.read()
        self._embed_few(executor)
        between = Now.read()
        self._embed_all(executor, store)
        started = between.since(start)
        return started, Now.read().since(between).since(started)

    def ray(self, store: Path) -> tuple[Now, Now]:
        """Time a Ray worker for each thread: start-up, and the rest."""
        start = Now.read()
        with RayExecutor("local", processes=self.processes) as executor:
            self._embed_few(executor)
            between = Now.read()
            self._embed_all(executor, store)
            end = Now.read()
        return between.since(start), end.since(between)

    def _embed_few(self, executor: Executor) -> None:
        corpus = Corpus(images=[], texts=self.texts[: self.processes])
        with tempfile.TemporaryDirectory() as folder:
            embed_corpus(corpus, folder, self.encoder, shard_size=1, executor=executor)

    def _embed_all(self, executor: Executor, store: Path) -> None:
        corpus = Corpus(images=[], texts=self.texts)
        embed_corpus(corpus, store, self.encoder, shard_size=self.shard_size, executor=executor)


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
    processes = arguments.processes
    contest = Contest(texts, load_encoder(arguments.model, precision="fp32"), arguments.shard_size, processes)
    contestants: dict[str, Callable[[Path], tuple[Now, Now]]] = {
        f"local, {processes} processes": contest.local,
        f"ray, {processes} workers": contest.ray,
    }
    times: dict[str, list[tuple[Now, Now]]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory() as folder:
        stores: dict[str, Path] = {}
        for number in range(arguments.rounds):
            for name, measure in contestants.items():
                stores[name] = Path(folder) / f"{name}-{number}"
                times[name].append(measure(stores[name]))
                started, then = times[name][-1]
                words = f"{started.clock:.1f} s, then {then.clock:.1f} s, {then.processor:.1f} of the processor"
                print(f"round {number + 1}, {name}: {words}", file=sys.stderr, flush=True)
        local, ray = (content(store) for store in stores.values())
    local_name, ray_name = contestants
    print(
        f"{len(texts):,} captions in shards of {arguments.shard_size:,}, {arguments.model}, {arguments.rounds} rounds"
    )
    rows = []
    for name, measured in times.items():
        start_up = statistics.median(start.clock for start, _ in measured)
        cells = [name, f"{start_up:.1f}"]
        for clock in Now._fields:
            seconds = [getattr(then, clock) for _, then in measured]
            others = [getattr(then, clock) for _, then in times[local_name]]
            overhead = statistics.median(mine / other for mine, other in zip(seconds, others, strict=True)) - 1
            cells += [
                f"{statistics.median(seconds):.1f}",
                f"{min(seconds):.1f} to {max(seconds):.1f}",
                f"{overhead:+.1%}",
            ]
        rows.append(cells)
    print_table(("", "start-up, s", "clock, s", "range", "overhead", "processor, s", "range", "overhead"), rows)
    print(f"Stores of {local_name} and {ray_name}: {'the same' if local == ray else 'DIFFERENT'}, byte by byte.")


if __name__ == "__main__":
    main()
