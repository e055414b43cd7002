"""The command that installs an extra names its requirements, not c3tools: that name on the package
index is another project's, and no requirement has it.
"""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path
from unittest.mock import Mock

import pytest

from c3tools.extras import PACKAGES_OF_MODELS, extra_requirements, install_command

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("extra", "command"),
    [
        ("ray", 'pip install "ray>=2.40"'),
        ("s3", 'pip install "fsspec>=2024.3" "s3fs>=2024.3"'),
        ("gone", 'pip install ".[gone]"'),
    ],
)
def test_the_requirements_come_from_the_metadata(
    extra: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        "numpy>=1.26",
        'fsspec>=2024.3; extra == "url"',
        'ray>=2.40; platform_machine in "arm64 x86_64" and extra == "ray"',
        'connect-collapse-corrupt[url]; extra == "s3"',
        's3fs>=2024.3; extra == "s3"',
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    assert install_command(extra) == command


def test_a_checkout_that_is_not_installed_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Mock(side_effect=importlib.metadata.PackageNotFoundError)
    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert install_command("ray") == 'pip install ".[ray]"'


def test_the_page_of_installing_lists_all_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = set(project["optional-dependencies"])
    assert set(extra_requirements()) == extras
    page = (ROOT / "docs" / "start" / "install.md").read_text("utf-8")
    rows = re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE)
    assert set(re.findall(r"`([\w-]+)`", " ".join(rows))) == extras


def test_what_runs_models_is_an_extra_that_those_of_devices_include() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    packages = [re.split("[<>=]", requirement)[0] for requirement in extras["models"]]
    assert packages == [*PACKAGES_OF_MODELS.values()]
    required = {re.split("[<>=]", requirement)[0] for requirement in project["dependencies"]}
    assert not required & {*packages}
    for device in ("cpu", "gpu"):
        assert f"{project['name']}[models]" in extras[device]


# As files name a distribution: pip's commands, requirements with extras or an address, wheels, and
# the metadata of an installation
WRITTEN = (".py", ".md", ".toml", ".yml", ".yaml", ".txt", ".html")
OTHER_PROJECT = re.compile(
    r"""pip\ install\ [^`#\n]*(?<![\w./-])c3tools(?![\w./-])
    | (?<![\w.])c3tools(\[\w|\ @\ |-\d|[=<>~]=)
    | (requires|metadata|version|distribution)\(.c3tools
    | (dependencies|^name)\ =.*"c3tools""",
    re.VERBOSE | re.MULTILINE,
)


def test_the_name_of_another_project_is_no_requirement() -> None:
    found = {}
    folders = ("c3tools", "cli", "docs", "examples", "benchmarks", ".ci", ".github", "tests")
    files = [path for path in ROOT.iterdir() if path.suffix in WRITTEN]
    files += [ROOT / "Dockerfile", ROOT / "Makefile", ROOT / "CITATION.cff"]
    for folder in folders:
        files += [path for path in (ROOT / folder).rglob("*") if path.suffix in WRITTEN]
    for path in files:
        matches = [match.group() for match in OTHER_PROJECT.finditer(path.read_text("utf-8"))]
        if matches and path != Path(__file__):
            found[str(path.relative_to(ROOT))] = matches
    assert not found
