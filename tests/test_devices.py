from __future__ import annotations

import pytest
import torch

from c3tools import devices
from c3tools.devices import Compute, pick
from c3tools.errors import C3Error


def test_the_speed_of_bf16_is_a_ratio() -> None:
    assert 0.01 < devices.cpu_bf16_speed() < 100


def test_devices_and_precisions() -> None:
    assert pick("cpu", "fp32") == Compute(torch.device("cpu"), "fp32")
    with pytest.raises(C3Error, match="Unknown precision"):
        pick("cpu", "fp8")
    with pytest.raises(C3Error, match="not computed natively"):
        pick("cpu", "fp16")
    with pytest.raises(C3Error, match="int8 is for encoders alone"):
        pick("cpu", "int8")
    with pytest.raises(C3Error, match="Unknown device 'tpuu'"):
        pick("tpuu")
    if not torch.cuda.is_available():
        with pytest.raises(C3Error, match="--device cpu"):
            pick("cuda")


def test_several_devices() -> None:
    assert devices.pick_devices("cpu, cpu") == ["cpu", "cpu"]
    assert len(devices.pick_devices()) >= 1
    if not torch.cuda.is_available():
        with pytest.raises(C3Error, match="this torch sees no CUDA GPU"):
            devices.pick_devices("cpu,cuda:0")


def test_every_gpu_is_used_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert devices.pick_devices() == ["cuda:0", "cuda:1", "cuda:2"]
