from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys

import pytest
import torch

from c3tools import devices
from c3tools.devices import Compute, pick
from c3tools.errors import C3Error


def test_devices_and_precisions() -> None:
    assert pick("cpu", "fp32") == Compute("cpu", "fp32")
    for precision, said in (("fp16", "CPUs do not compute in fp16"), ("int8", "int8 is for encoders only")):
        with pytest.raises(C3Error, match=said):
            pick("cpu", precision)
    if not torch.cuda.is_available():
        with pytest.raises(C3Error, match="--device cpu"):
            pick("cuda")


def test_several_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.pick_devices("cpu, cpu") == ["cpu", "cpu"]
    if not torch.cuda.is_available():
        with pytest.raises(C3Error, match="torch finds no CUDA GPU"):
            devices.pick_devices("cpu,cuda:0")
    monkeypatch.setattr(devices, "_may_have_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert devices.pick_devices() == ["cuda:0", "cuda:1", "cuda:2"]


@pytest.mark.parametrize("device", [None, "cpu"])
def test_the_cpu_is_picked_without_torch(device: str | None) -> None:
    if devices._may_have_gpu() and device is None:
        pytest.skip("torch is asked for the GPU")
    code = f"""
import sys
from c3tools.devices import Compute, pick, pick_devices, threads
assert pick({device!r}, "fp32") == Compute("cpu", "fp32") and pick_devices({device!r}) == ["cpu"] and threads() > 0
sys.exit("torch" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_threads_follow_the_variable_and_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = devices.threads()
    assert 1 <= cores <= (os.cpu_count() or 1)
    for value, expected in (("3", 3), ("2,1", 2), ("", cores), ("many", cores), ("0", 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert devices.threads() == expected
    before = torch.get_num_threads()
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
        devices.limit_threads(2)
        assert (devices.threads(), torch.get_num_threads()) == (2, 2)
        devices.limit_threads(3)
        assert devices.threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library is not glibc")
def test_the_freed_memory_of_models_on_a_cpu_is_kept() -> None:
    code = """
import resource, sys, torch
from c3tools.devices import pick
if sys.argv[1] == "kept":
    pick("cpu")
for _ in range(20):
    [torch.ones(4 * 2**20) for _ in range(4)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "given back")
    )
    assert given_back - kept > 15 * 2**26 // resource.getpagesize()  # 19 times 64 MiB, page by page
