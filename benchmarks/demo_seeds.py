"""Run the demo with several seeds, to measure how much each step of the method contributes.

    python benchmarks/demo_seeds.py  # 3 seeds: 7 minutes on 2 cores; less than 2 GiB

Prints mean ± standard deviation over seeds for each method, with the 95% interval of CIDEr over
photos and seeds, the methods in the order of their mean CIDEr, and the differences of the steps of
the method and of C3 and C1. Nothing is chosen on the photos: see `c3tools.demo`.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import replace
from pathlib import Path

from c3tools import run_demo
from c3tools.terminal import TerminalReporter


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sigma", type=float, default=None)
    parser.add_argument("--output", type=Path, default=Path("c3-demo"))
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    start = time.perf_counter()
    result = run_demo(
        options.output, seeds=options.seeds, sigma=options.sigma, reporter=TerminalReporter()
    )
    print(
        f"\nsigma {result.sigma:.4f}, {options.seeds} seeds, {time.perf_counter() - start:.0f} s, "
        f"peak "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB\n"
    )
    table = result.table()
    print("| " + " | ".join(table.columns) + " |\n|" + "---|" * len(table.columns))
    for row in table.rows:
        print("| " + " | ".join(row) + " |")
    cider = {row["method"]: row["scores"]["CIDEr"] for row in result.ablation.rows}
    print("\norder: " + " < ".join(sorted(cider, key=lambda name: cider[name]["mean"])))
    ends = replace(
        result.ablation, runs=[run for run in result.ablation.runs if run.method in ("C1", "C3")]
    )
    print("\n".join([*result.ablation.notes, *ends.notes]))
    if options.json:
        options.json.write_text(json.dumps(result.to_dict()["runs"], indent=1))


if __name__ == "__main__":
    main()
