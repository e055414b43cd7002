from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from c3tools.io.quiet import quiet_libraries


def write(line: str) -> None:
    """Write as a library in C does."""
    os.write(2, line.encode())


def test_lines_become_notes_and_are_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken") as error, quiet_libraries():
        write("TIFFFetch: odd\nTIFFFetch: odd\n")
        write("  JPEGLib: odder  \n\n")
        raise ValueError("broken")
    assert error.value.__notes__ == ["TIFFFetch: odd", "JPEGLib: odder"]
    with quiet_libraries():
        write("a warning of what can be read\n")
    write("after\n")
    assert capfd.readouterr().err == "after\n"


def test_a_library_that_writes_without_end_fills_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken") as error, quiet_libraries():
        for number in range(20_000):
            try:
                write(f"line {number}\n")
            except BlockingIOError:  # a library in C does not look
                break
        raise ValueError("broken")
    assert error.value.__notes__ == [f"line {number}" for number in range(4)]
    assert capfd.readouterr().err == ""


def test_blocks_in_several_threads_end_in_the_real_one(capfd: pytest.CaptureFixture[str]) -> None:
    inside, leave = threading.Barrier(3), threading.Event()

    def work() -> None:
        with quiet_libraries():
            inside.wait(10)
            write("kept\n")
            leave.wait(10)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    inside.wait(10)
    leave.set()
    for thread in threads:
        thread.join()
    write("shown\n")
    assert capfd.readouterr().err == "shown\n"


def test_python_goes_on_writing_from_all_threads(tmp_path: Path) -> None:
    code = """
import os, sys, threading
from c3tools.io.quiet import quiet_libraries
with quiet_libraries():
    os.write(2, b"of a library\\n")
    thread = threading.Thread(target=lambda: print("of another thread", file=sys.stderr))
    thread.start()
    thread.join()
    print("of this thread", file=sys.stderr)
print("after", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stderr == "of another thread\nof this thread\nafter\n"
