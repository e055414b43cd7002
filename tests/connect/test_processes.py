from __future__ import annotations

import torch

from c3tools.connect import processes
from tests.conftest import Messages


def test_one_process_gathers_its_own_rows() -> None:
    rows = torch.ones(3, 2)
    assert processes.gather_rows(rows) is rows
    assert (processes.rank(), processes.world()) == (0, 1)


def test_the_only_process_is_the_main_one() -> None:
    said = Messages()
    with processes.join_processes("cpu", "fp32", said) as run:
        assert (run.compute.precision, run.is_main_process, run.reporter) == ("fp32", True, said)
