"""A long walk of the state machine of a store: 10,000 steps against a dictionary in memory.

    OMP_NUM_THREADS=1 python benchmarks/store_model.py --steps 10000

A step adds, changes, breaks or removes inputs, embeds, kills a run and continues it, damages a file and repairs the
store, reads while it writes, merges, splits or exports; see tests/store/model.py. After each step the store holds the
rows that it should, and nothing temporary is left. Costs about 15 minutes on one core; should end with "0 failures".
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.store.model import StoreMachine

_STEPS = 50  # of one machine, at most


def main() -> None:
    """Walk until there were so many steps; a failure ends it with the steps that led there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shrink", action="store_true", help="look for the shortest steps that fail in the same way")
    arguments = parser.parse_args()
    start, machines = time.perf_counter(), 0
    options = settings(
        max_examples=10,
        stateful_step_count=_STEPS,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink) if arguments.shrink else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    while (done := sum(StoreMachine.steps.values())) < arguments.steps:
        run_state_machine_as_test(seed(arguments.seed * 1_000_003 + machines)(StoreMachine), settings=options)
        machines += options.max_examples
        print(f"{done:,} steps, {time.perf_counter() - start:,.0f} s", file=sys.stderr, flush=True)
    for step, count in sorted(StoreMachine.steps.items()):
        print(f"{count:7,}  {step}")
    print(f"{sum(StoreMachine.steps.values()):,} steps, 0 failures")


if __name__ == "__main__":
    main()
