"""Run the commands and snippets of a page of the documentation, and compare what they print with
what the page shows.

    python -m tests.docs.pages docs/guides/search.md      # write what they print into the page

A page runs in an empty folder. In a ``console`` block, lines that begin with ``$`` are commands; a
``python`` block is followed by a ``text`` block with what it prints. A line ``...`` stands for any
output.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(
    r"^```(console|python)\n(.*?)^```$(?:\n+^```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE
)
_COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
_NUMBER = re.compile(r"[-−+]?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
_TIMINGS = (  # depend on the machine
    re.compile(r"^( +(?:image|text) +[\d,]+ +\d+ +\d+) +[\d.,]+ +[\d.,]+ *$", re.MULTILINE),
    re.compile(r"^( +\d+ +[\d.]+ +[\d.]+) +[\d,]+ *$", re.MULTILINE),
    re.compile(
        r"^[A-Z][\w ]+ took \d+% of the time: .*?(?:would help|only once)\.\n?()",
        re.DOTALL | re.MULTILINE,
    ),
)
_PROGRESS = re.compile(r" of [\d,]+, [\d.,]+/s, [\d:]+ elapsed")  # printed by slow machines only
TOLERANCE = 0.05
"""Relative difference of a number with a decimal point; others are equal."""


def as_on_a_plain_install(patch: pytest.MonkeyPatch) -> None:
    """Leave out bf16, so that pages show what any CPU prints."""
    patch.setattr("c3tools.devices._cpu_has_fast_bf16", lambda: False)
    patch.delenv("C3_STORE", raising=False)
    patch.setenv("COLUMNS", "88")
    # A console that was made before, by another test, keeps the width of that time
    patch.setattr("c3tools.cli._console.out._width", None)


def run_page(page: str, check: Callable[[str, str, str], str]) -> str:
    """Run every block of a page in the current folder; `check(command, shown, printed)` returns
    what to show."""
    names: dict[str, Any] = {"__name__": "__main__"}

    def replace(match: re.Match[str]) -> str:
        language, body, shown = match.groups()
        if language == "console":
            parts = (
                f"$ {words}\n" + check(words, out, run_command(words))
                for words, out in _COMMAND.findall(body)
            )
            return "```console\n" + "".join(parts) + "```"
        printed = check(body, shown or "", _run_python(body, names))
        tail = f"\n\n```text\n{printed}```" if printed else ""
        return f"```python\n{body}```{tail}"

    return _FENCE.sub(replace, page)


def run_command(command: str) -> str:
    """Return what a command prints, to standard output and standard error, without blank ends."""
    words = shlex.split(command, comments=True)
    if words[0] == "c3" and not {"|", ">", "&&"} & set(words):
        from c3tools.cli import app

        result = CliRunner().invoke(app, words[1:], prog_name="c3", catch_exceptions=False)
        printed, code = result.output, result.exit_code
    else:
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        done = subprocess.run(
            ["bash", "-c", command], env=environment, capture_output=True, text=True, check=False
        )
        printed, code = done.stdout + done.stderr, done.returncode
    assert code == 0, f"{command}: exit code {code}\n{printed}"
    return _tidy(printed)


def _run_python(code: str, names: dict[str, Any]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        exec(compile(code, "page", "exec"), names)
    return _tidy(out.getvalue())


def _tidy(printed: str) -> str:
    lines = map(str.rstrip, printed.splitlines())
    return "".join(f"{line}\n" for line in lines if line and not _PROGRESS.search(line))


def same(shown: str, printed: str) -> bool:
    """Tell whether two outputs agree: words equal, numbers within the tolerance, timings and
    ``...`` left out."""
    return _match(_words(shown), _words(printed))


def _words(text: str) -> list[str]:
    for pattern in _TIMINGS:
        text = pattern.sub(r"\1", text)
    return [word for word in text.split() if set(word) != {"─"}]


def _match(shown: list[str], printed: list[str]) -> bool:
    if "..." not in shown:
        return len(shown) == len(printed) and all(map(_same_word, shown, printed))
    first = shown.index("...")
    rests = (printed[start:] for start in range(first, len(printed) + 1))
    return all(map(_same_word, shown[:first], printed)) and any(
        _match(shown[first + 1 :], rest) for rest in rests
    )


def _same_word(shown: str, printed: str) -> bool:
    numbers = map(_NUMBER.findall, (shown, printed))
    return _NUMBER.sub("#", shown) == _NUMBER.sub("#", printed) and all(map(_close, *numbers))


def _close(shown: str, printed: str) -> bool:
    if shown == printed or not ("." in shown and "." in printed):
        return shown == printed
    a, b = (float(text.replace(",", "").replace("−", "-")) for text in (shown, printed))
    last = 10.0 ** -len(shown.partition(".")[2].partition("e")[0])
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=2 * last)


def main(path: Path) -> None:
    """Write what the commands of a page print into the page; an output that ends in ``...`` keeps
    its length."""
    import tempfile

    page = path.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        as_on_a_plain_install(patch)
        patch.chdir(folder)
        page = run_page(page, lambda _, shown, printed: shown if same(shown, printed) else printed)
    path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        main(Path(name).resolve())
