from __future__ import annotations

import ctypes
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from c3tools import devices
from c3tools.devices import Compute, pick
from c3tools.errors import C3Error


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine with GPUs, whose CPU has these flags, as far as torch and the system can tell."""

    def make(
        system: str = "Linux",
        kind: str = "x86_64",
        driver: str = "libcuda.so.1",
        flags: str = "",
        gpus: int = 3,
    ) -> None:
        def open_library(name: str) -> None:
            if name != driver:
                raise OSError(name)

        for place, name, value in (
            (torch.cuda, "is_available", lambda: system != "Darwin"),
            (torch.cuda, "device_count", lambda: gpus),
            (
                torch.cuda,
                "get_device_capability",
                lambda name: (8, 0) if name != "cuda:1" else (7, 5),
            ),
            (torch.backends.mps, "is_available", lambda: True),
            (platform, "system", lambda: system),
            (platform, "machine", lambda: kind),
            (ctypes, "CDLL", open_library),
            (devices, "has_int8", lambda: True),
            (Path, "exists", lambda path: driver == str(path)),
            (Path, "read_text", lambda *_, **__: f"model: flags\nflags : fpu {flags}\n"),
        ):
            monkeypatch.setattr(place, name, value)

    return make


def test_devices_and_precisions(machine: Callable[..., None]) -> None:
    machine()
    assert (pick("cpu", "fp32"), pick("cpu", "int8", encoder=True)) == (
        Compute("cpu", "fp32"),
        Compute("cpu", "int8"),
    )
    assert (pick(), pick("cuda:2", "fp16")) == (Compute("cuda", "bf16"), Compute("cuda:2", "fp16"))
    # each GPU its own; one before Ampere computes in bf16, but slowly
    assert [pick(f"cuda:{number}").precision for number in range(3)] == ["bf16", "fp32", "bf16"]
    assert (pick("cuda:2").device_type, pick("cuda:2", "fp16").dtype) == ("cuda", torch.float16)
    for device, precision, said in (
        ("cpu", "fp16", "CPUs do not compute in fp16"),
        ("cpu", "int8", "Only encoders run in int8"),
        ("tpu9", "auto", "'tpu9'"),
        ("cuda:3", "auto", "cuda:3 .* has 3 CUDA GPUs"),
    ):
        with pytest.raises(C3Error, match=said):
            pick(device, precision)
    with pytest.raises(C3Error, match="not cuda:1"):
        pick("cuda:1", "int8", encoder=True)
    machine(gpus=1)
    assert (pick("cuda").device, devices.pick_devices()) == ("cuda", ["cuda"])
    machine("Darwin", "arm64")
    for refused in (pick, devices.pick_devices):
        with pytest.raises(C3Error, match=r"torch finds no CUDA GPU.*\n.*--device cpu"):
            refused("cuda")


def test_the_best_device_there_is(machine: Callable[..., None]) -> None:
    for best, system, kind, driver in (
        ("cuda", "Linux", "x86_64", "libcuda.so.1"),
        ("cuda", "Linux", "x86_64", "/dev/kfd"),
        ("cuda", "Windows", "AMD64", "nvcuda.dll"),
        ("cpu", "Linux", "x86_64", "nvcuda.dll"),
        ("cpu", "Darwin", "x86_64", "libcuda.so.1"),
        ("mps", "Darwin", "arm64", ""),
    ):
        machine(system, kind, driver)
        assert pick(precision="fp32").device == best
        if system != "Darwin":
            expected = [f"cuda:{number}" for number in range(3)] if best == "cuda" else ["cpu"]
            assert devices.pick_devices() == devices.pick_devices(" ,") == expected
        assert devices.pick_devices("cpu, cpu") == ["cpu", "cpu"]


def test_auto_is_bf16_on_cpus_that_are_faster_in_it(machine: Callable[..., None]) -> None:
    without = "avx512_bf16 avx512_fp16"
    for flags, precision in {
        "avx2": "fp32",
        "avx512_bf16": "bf16",
        without: "fp32",
        f"{without} amx_bf16": "bf16",
    }.items():
        machine(flags=flags)
        assert pick("cpu").precision == precision


def test_the_cpu_is_picked_without_torch() -> None:
    code = """
import sys
from c3tools import devices
devices._may_have_gpu = lambda: False
for device in (None, "cpu"):
    assert devices.pick(device, "fp32").device == "cpu" and devices.pick_devices(device) == ["cpu"]
assert devices.threads() > 0
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
    command = [sys.executable, "-c", code]
    kept, given_back = (
        int(subprocess.check_output([*command, how])) for how in ("kept", "given back")
    )
    assert given_back - kept > 15 * 2**26 // resource.getpagesize()  # 19 times 64 MiB, page by page
