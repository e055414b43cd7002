from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from c3tools.connect.gradients import TwoTowers, contrastive_backward
from c3tools.connect.losses import ContrastiveLoss, LogitScale, same_items
from c3tools.devices import Compute

CPU = Compute("cpu", "fp32")


def towers(dropout: float = 0.0) -> TwoTowers:
    torch.manual_seed(0)
    return TwoTowers(
        nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4)),
        nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)),
    )


def batch(n: int = 12) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(n, 6, generator=generator), torch.randn(n, 5, generator=generator)
    return inputs, same_items(torch.arange(n) // 2, torch.arange(n))


def gradients(module: nn.Module) -> list[npt.NDArray[np.float32]]:
    return [p.grad.numpy().copy() for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
@pytest.mark.parametrize("chunk", [None, 12, 5, 1])
@pytest.mark.parametrize("close_gap", [0.0, 0.7])
def test_chunks_have_the_gradient_of_the_whole_batch(kind: str, chunk: int | None, close_gap: float) -> None:
    inputs, same = batch()
    plain, plain_loss = towers(), ContrastiveLoss(kind, LogitScale(20, learned=True), close_gap)
    rows = [plain.embed(x, side, CPU) for side, x in enumerate(inputs)]
    value = plain_loss(rows[0], rows[1], same)
    (value + plain_loss.gap_terms(rows[0], rows[1], same)).backward()
    cached, loss = towers(), ContrastiveLoss(kind, LogitScale(20, learned=True), close_gap)
    found = contrastive_backward(cached, loss, inputs, same, CPU, chunk=chunk)
    assert found == pytest.approx(float(value.detach()), rel=1e-6)
    for expected, got in zip(
        gradients(plain) + gradients(plain_loss), gradients(cached) + gradients(loss), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)


def test_dropout_is_the_same_in_both_passes() -> None:
    inputs, same = batch()
    trained = towers(dropout=0.5).train()
    runs = []
    for _ in range(2):
        trained.zero_grad()
        torch.manual_seed(torch.seed())  # what was drawn before must not matter
        contrastive_backward(trained, ContrastiveLoss(), inputs, same, CPU, chunk=4, scope=(0, 3))
        runs.append(gradients(trained))
    for first, second in zip(*runs, strict=True):
        np.testing.assert_array_equal(first, second)
    # finite differences of the loss with the same masks: another mask in the second pass would show
    weight = trained.get_parameter("first.0.weight")
    nudge = 1e-3
    values = []
    for sign in (1, -1):
        moved = copy.deepcopy(trained)
        moved.get_parameter("first.0.weight").data[0, 0] += sign * nudge
        values.append(contrastive_backward(moved, ContrastiveLoss(), inputs, same, CPU, chunk=4, scope=(0, 3)))
    assert weight.grad is not None
    assert float(weight.grad[0, 0]) == pytest.approx((values[0] - values[1]) / (2 * nudge), rel=0.05, abs=1e-4)


def test_a_frozen_tower_gets_no_gradient() -> None:
    inputs, same = batch()
    trained = towers()
    trained.first.requires_grad_(False)
    contrastive_backward(trained, ContrastiveLoss(), inputs, same, CPU, chunk=5)
    assert all(p.grad is None for p in trained.first.parameters())
    assert all(p.grad is not None for p in trained.second.parameters())


def test_batch_normalisation_stays_as_it_is() -> None:
    trained = TwoTowers(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)), nn.Linear(5, 8)).train()
    assert trained.second.training
    assert not trained.get_submodule("first.1").training


WORKER = """
import json, sys
import torch
from c3tools.connect import processes
from c3tools.connect.gradients import contrastive_backward
from c3tools.connect.losses import ContrastiveLoss, LogitScale
from tests.connect.test_gradients import CPU, batch, towers
with processes.join_processes("cpu", "fp32"):
    inputs, same = batch()
    size = len(same) // processes.world()
    mine = slice(processes.rank() * size, (processes.rank() + 1) * size)
    trained, loss = towers(), ContrastiveLoss("infonce", LogitScale(20, learned=True))
    value = contrastive_backward(trained, loss, tuple(x[mine] for x in inputs), same, CPU, chunk=2)
    found = [p.grad.flatten().tolist() for p in [*trained.parameters(), *loss.parameters()]]
    if processes.rank() == 1:
        json.dump({"world": processes.world(), "loss": value, "gradients": found}, open(sys.argv[1], "w"))
"""


@pytest.mark.timeout(600)
def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    inputs, same = batch()
    alone, loss = towers(), ContrastiveLoss("infonce", LogitScale(20, learned=True))
    value = contrastive_backward(alone, loss, inputs, same, CPU)
    found = two_processes([sys.executable, "-c", WORKER, str(tmp_path / "out.json")], tmp_path / "out.json")
    assert found["world"] == 2
    assert found["loss"] == pytest.approx(value, rel=1e-6)
    for expected, got in zip(gradients(alone) + gradients(loss), found["gradients"], strict=True):
        np.testing.assert_allclose(np.array(got).reshape(expected.shape), expected, rtol=1e-4, atol=1e-7)


def two_processes(command: list[str], result: Path) -> dict[str, Any]:
    """Run the command twice, as torchrun would, and read what it wrote."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = Path(__file__).parent.parent.parent
    plain = {**os.environ, "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""}
    shared = {**plain, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    runs = [
        subprocess.Popen(command, env={**shared, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    try:
        for run in runs:
            _, errors = run.communicate(timeout=500)
            assert run.returncode == 0, errors
    finally:
        for run in runs:
            run.kill()  # one that failed leaves the other waiting
            run.communicate()
    found: dict[str, Any] = json.loads(result.read_text())
    return found
