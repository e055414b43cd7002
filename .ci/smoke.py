"""Install a wheel in a fresh environment, and run the program there: without the checkout, without
a network.

The wheel of the example of an encoder is installed beside it, and used.

    python .ci/smoke.py dist/c3tools-0.1.0-py3-none-any.whl

The packages that c3tools needs are those of the Python that runs this; nothing is downloaded. It
takes about a minute.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

PLUGIN = Path(__file__).parents[1] / "examples" / "encoder_plugin"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
# a proxy that does not answer, for every client that would use the network
_OFFLINE = dict.fromkeys(
    ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"), "http://127.0.0.1:9"
)


def main(wheel: Path) -> None:
    """Run the commands of a newcomer, and check what they leave behind."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copytree(PLUGIN, folder / "plugin")
        build = [
            *PIP,
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--no-build-isolation",
            "-w",
            temporary,
        ]
        subprocess.run([*build, str(folder / "plugin")], check=True)
        python = _install([wheel.resolve(), *folder.glob("*.whl")], folder / "environment")
        work = folder / "work"
        work.mkdir()
        environment = {**os.environ, **_OFFLINE, "HF_HUB_OFFLINE": "1", "HOME": temporary}
        environment.pop("PYTHONPATH", None)

        def run(*command: str | Path) -> str:
            print("$", *(getattr(part, "name", part) for part in command), flush=True)
            return subprocess.run(
                command, cwd=work, env=environment, check=True, text=True, stdout=subprocess.PIPE
            ).stdout

        c3 = python.with_name("c3")
        home = Path(run(python, "-c", "import c3tools; print(c3tools.__file__)").strip())
        assert home.is_relative_to(folder), f"{home} is not what was installed"
        run(c3, "--version")
        run(c3, "demo", "--photos-to", "images")
        captions = json.loads(run(c3, "caption", "images/000000000285.jpg", "--json", "-"))
        assert captions[0]["caption"], captions
        embedded = json.loads(
            run(c3, "embed", "images", "--model", "colours:2", "--store", "colours", "--json")
        )
        assert embedded["modalities"]["image"]["embedded"] > 100, embedded
        runs = json.loads(run(c3, "demo", "--captions", "40", "--json", "-"))
        assert [entry["method"] for entry in runs] == ["C1", "C2_1", "C2_2", "C3"], runs
        assert "<svg" in (work / "c3-demo" / "demo.html").read_text(encoding="utf-8")
        print(
            f"{wheel.name} ({wheel.stat().st_size / 1e6:.1f} MB) works: {captions[0]['caption']!r}"
        )


def _install(wheels: Sequence[Path], folder: Path) -> Path:
    """Make an environment with the wheels, which sees the packages of this Python behind it; return
    its Python.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    install = [*PIP, "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, *map(str, wheels)], check=True)
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "packages.pth").write_text("".join(f"{path}\n" for path in packages), encoding="utf-8")
    return python


if __name__ == "__main__":
    main(Path(sys.argv[1]))
