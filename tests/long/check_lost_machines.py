"""Lose a machine: a run on Ray that loses a machine at any moment ends by itself, with the files of
a run on one machine.

    pytest tests/long/check_lost_machines.py --kills 30    # without --kills, for --minutes

Every run begins with two raylets of one core each. The second is killed, with its processes, when a
random number of shards is made.
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
LONGEST = 300  # seconds for a run to end


def test_a_run_that_loses_a_machine_ends_with_the_same_files(
    tmp_path: Path, budget: Budget
) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    store = tmp_path / "c3-store"
    copy_photos(tmp_path / "photos", 30)
    texts = "".join(f"a photo of {number} dogs\n" for number in range(1600))
    (tmp_path / "texts.txt").write_text(texts)
    subprocess.run(COMMAND, cwd=tmp_path, check=True, capture_output=True)
    expected = contents(store)
    shards = sum(name.endswith(".parquet") for name in expected)

    shards_at_kills = list[int]()
    while budget.is_left(len(shards_at_kills)):
        shutil.rmtree(store)
        least = budget.random.randrange(shards)
        delay = budget.random.random()
        shards_at_kills.append(lose_a_machine(store, least, delay))
        assert contents(store) == expected
        at = ", ".join(map(str, sorted(shards_at_kills)))
        budget.report(
            f"{len(shards_at_kills)} kills, when {at} of {shards} shards were made; all runs "
            "ended with the same files"
        )


def lose_a_machine(store: Path, least: int, delay: float) -> int:
    """Run the command on two raylets, of which the second is killed so many seconds after there are
    so many shards; return how many there were."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = cluster.add_node(num_cpus=1)
        arguments = [*COMMAND, "--executor", "ray", "--address", cluster.address]
        run = subprocess.Popen(
            arguments,
            cwd=store.parent,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        while shards_in(store) < least and run.poll() is None:
            time.sleep(0.01)
        time.sleep(delay)
        shards = shards_in(store)
        kill_raylet(second)
        stderr = run.communicate(timeout=LONGEST)[1]
        assert run.returncode == 0, stderr
    finally:
        cluster.shutdown()
    return shards


def shards_in(store: Path) -> int:
    return len(list(store.glob("*/part-*.parquet")))
