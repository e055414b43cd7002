"""Little memory: it is said as such, and no file is called damaged for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from c3tools.errors import C3Error, EncoderError, is_out_of_memory
from c3tools.io.limits import UNPACKED_OF_ANY_FILE, TooLargeError, refusing_excess
from tests.stores import whole_store

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")

# Runs code when only so many MiB are left to this process
LIMITED = """
import resource, sys
import pyarrow.parquet, numpy
from c3tools.cli import main
from c3tools.io.files import read_json
from c3tools.store import Store
from pathlib import Path
Store.open("small").load("image")
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
most = in_use + int(sys.argv.pop(1)) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (most, most))
{code}
"""


def run_with(mib: int, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LIMITED.format(code=code), str(mib), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole_store(tmp_path / "small", images=4)


def test_a_small_json_file_is_read_with_little_memory() -> None:
    done = run_with(100, "print(read_json(Path('small/store.json'))['dim'])")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_command_says_that_memory_ran_out() -> None:
    np.save("i.npy", np.ones((32_768, 1024), np.float32))
    done = run_with(100, "main()", "import", "--image", "i.npy")
    assert done.returncode == 1
    assert "Error: Out of memory. Finished work is kept." in done.stderr
    assert "repair" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_asks_for_far_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(565))
    with pytest.raises(TooLargeError, match="its 565 bytes"), refusing_excess(path):
        raise MemoryError


def test_memory_that_is_not_free_is_not_the_fault_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert UNPACKED_OF_ANY_FILE == 2**26
    monkeypatch.setattr("c3tools.io.limits.UNPACKED_OF_ANY_FILE", 2**62)
    with pytest.raises(MemoryError), refusing_excess(tmp_path):
        raise MemoryError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("libopenvino.so: failed to map segment from shared object"), True),
        (ImportError("libtorch.so: failed to map segment from shared object"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("shapes differ"), False),
        (C3Error("a photo of a man out of memory"), False),
    ],
)
def test_libraries_say_it_in_many_ways(error: Exception, said: bool) -> None:
    assert is_out_of_memory(error) is said
    wrapped = EncoderError("The model could not be loaded")
    wrapped.__cause__ = error
    assert is_out_of_memory(wrapped) is said
