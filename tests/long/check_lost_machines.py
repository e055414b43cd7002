"""Lose machines: a run on Ray that loses machines at any moment ends by itself, with the files of a
run on one machine.

    pytest tests/long/check_lost_machines.py --kills 30    # without --kills, for --minutes

Every run begins with two raylets of one core each. The second is killed once to three times; after
each kill but the last a new one joins.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import contents, copy_photos
from tests.executors.lost_machine import kill_raylet

from .conftest import Budget

ARGUMENTS = "embed photos texts.txt --shard-size 25 --workers 0 --backend openvino --precision fp32"
COMMAND = [sys.executable, "-c", "from c3tools.cli import main; main()", *ARGUMENTS.split()]


def test_a_run_that_loses_machines_ends_with_the_same_files(tmp_path: Path, budget: Budget) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    from ray.cluster_utils import Cluster

    store = tmp_path / "c3-store"
    copy_photos(tmp_path / "photos", 30)
    texts = "".join(f"a photo of {number} dogs\n" for number in range(800))
    (tmp_path / "texts.txt").write_text(texts)
    subprocess.run(COMMAND, cwd=tmp_path, check=True, capture_output=True)
    expected = contents(store)
    shards = sum(name.endswith(".parquet") for name in expected)

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    on_ray = [*COMMAND, "--executor", "ray", "--address", cluster.address]
    seconds = 0.0  # of a run that loses nothing
    shards_at_kills = list[int]()
    runs = 0
    try:
        while budget.is_left(len(shards_at_kills)):
            shutil.rmtree(store)
            second = cluster.add_node(num_cpus=1)
            kills = budget.random.randint(1, 3) if runs else 0
            moments = sorted(budget.random.uniform(0, seconds) for _ in range(kills))
            start = time.monotonic()
            run = subprocess.Popen(on_ray, cwd=tmp_path, stdout=-1, stderr=-1, text=True)
            for moment in moments:
                time.sleep(max(0, start + moment - time.monotonic()))
                if run.poll() is not None:
                    break
                shards_at_kills.append(len(list(store.glob("*/part-*.parquet"))))
                kill_raylet(second)
                if moment != moments[-1]:
                    second = cluster.add_node(num_cpus=1)
            stderr = run.communicate(timeout=60 + 5 * seconds if runs else None)[1]
            assert run.returncode == 0, stderr
            assert contents(store) == expected
            if not runs:
                seconds = time.monotonic() - start
            kill_raylet(second)
            runs += 1
            at = ", ".join(map(str, sorted(shards_at_kills)))
            budget.report(
                f"{len(shards_at_kills)} kills in {runs - 1} runs that ended with the same files; "
                f"they came when {at} of {shards} shards were made"
            )
    finally:
        cluster.shutdown()
