"""Install a wheel in a fresh environment, and run the program there: without the checkout, without
a network.

The wheel of the example of an encoder is installed beside it, and used. A second environment has
only the packages that a fitted pipeline needs.

    python .ci/smoke.py dist/connect_collapse_corrupt-0.1.0-py3-none-any.whl

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
from importlib.metadata import files
from pathlib import Path

PLUGIN = Path(__file__).parents[1] / "examples" / "encoder_plugin"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
# what docs/guides/pipeline.md installs to apply a pipeline
PIPELINE_PACKAGES = ("msgspec", "numpy", "safetensors")
FIT = """
import numpy, c3tools
rows = {name: numpy.random.default_rng(len(name)).random((64, 8)) for name in ("image", "text")}
c3tools.preset("c3", sigma=0.1).fit(rows).save("recipe")
"""
APPLY = """
import numpy
from c3tools import Pipeline
images = numpy.random.default_rng(0).random((4, 8), dtype="float32")
pipeline = Pipeline.load("recipe")
noisy = pipeline.transform(images, modality="image", training=True, keys=[*"abcd"], epoch=1)
print(pipeline.transform(images, modality="image").tobytes().hex(), noisy.tobytes().hex())
"""
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

        run(python, "-c", FIT)
        small = _install([wheel.resolve()], folder / "small", PIPELINE_PACKAGES)
        assert run(small, "-c", APPLY) == run(python, "-c", APPLY)
        refused = subprocess.run(
            [small.with_name("c3")], cwd=work, check=False, text=True, stderr=subprocess.PIPE
        )
        assert refused.stderr.startswith("Error: The command c3 needs the package "), refused
        print(
            f"{wheel.name} ({wheel.stat().st_size / 1e6:.1f} MB) works: {captions[0]['caption']!r}"
        )


def _install(wheels: Sequence[Path], folder: Path, packages: Sequence[str] | None = None) -> Path:
    """Make an environment with the wheels and packages of this Python, by default all of them;
    return its Python.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    install = [*PIP, "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, *map(str, wheels)], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    if packages is None:
        paths = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        (site / "packages.pth").write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")
        return python
    for package in packages:
        for file in files(package) or ():
            if file.parts[0] != "..":
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                (site / file).symlink_to(file.locate())
    return python


if __name__ == "__main__":
    main(Path(sys.argv[1]))
