"""Run the demo with several seeds, to see whether each step of the method earns its place.

    python benchmarks/demo_seeds.py            3 seeds, about 9 minutes on 2 cores, below 2 GiB

Prints mean ± standard deviation over seeds for each method, the order of the mean CIDEr, and whether C3 is above C1
by more than the spread. Nothing is chosen on the photos: see `c3tools.demo`.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

from c3tools.demo import DemoOptions, demo
from c3tools.demo.page import METRICS, summary_rows
from c3tools.reporter import track


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sigma", type=float, default=None)
    parser.add_argument("--out", type=Path, default=Path("c3-demo"))
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    start = time.perf_counter()
    result = demo(DemoOptions(options.out, seeds=range(options.seeds), sigma=options.sigma), track=track, say=print)
    rows = summary_rows(result.runs)
    print(
        f"\nsigma {result.sigma:.4f}, {options.seeds} seeds, {time.perf_counter() - start:.0f} s, peak "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB\n"
    )
    print("| method | " + " | ".join(METRICS) + " |")
    print("|---|" + "---|" * len(METRICS))
    for row in rows:
        cells = [
            f"{value:.1f}" + ("" if spread is None else f" ± {spread:.1f}") for value, spread in row["cells"].values()
        ]
        print(f"| {row['method']} | " + " | ".join(cells) + " |")
    cider = {row["method"]: row["cells"]["CIDEr"] for row in rows}
    print("\norder: " + " < ".join(sorted(cider, key=lambda name: cider[name][0])))
    spread = max(value[1] or 0.0 for value in cider.values())
    print(f"C3 - C1 = {cider['C3'][0] - cider['C1'][0]:.1f}, largest spread over seeds {spread:.1f}")
    if options.json:
        options.json.write_text(json.dumps([run.to_json() for run in result.runs], indent=1))


if __name__ == "__main__":
    main()
