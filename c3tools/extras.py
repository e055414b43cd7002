"""The optional requirements of c3tools, as its installed metadata lists them."""

from __future__ import annotations

import re

DISTRIBUTION = "connect-collapse-corrupt"

# what runs models, by the module that is imported: the extra models installs it
PACKAGES_OF_MODELS = {
    "bracex": "bracex",
    "open_clip": "open_clip_torch",
    "tenacity": "tenacity",
    "tokenizers": "tokenizers",
    "torch": "torch",
}

_REQUIREMENT = re.compile(
    r"""^(?P<requirement>[^;]+?)\s*;.*\bextra\s*==\s*["'](?P<extra>[^"']+)["']"""
)
_OTHER_EXTRA = re.compile(rf"^{DISTRIBUTION}\[(?P<extra>[\w-]+)\]$")


def extra_requirements() -> dict[str, list[str]]:
    """Return the requirements of each extra, such as ``ray>=2.40``.

    Raises:
        PackageNotFoundError: if c3tools is on the path but not installed.
    """
    # Not at the top: it loads fifty modules
    from importlib import metadata

    listed: dict[str, list[str]] = {}
    for line in metadata.requires(DISTRIBUTION) or ():
        match = _REQUIREMENT.match(line)
        if match is not None:
            listed.setdefault(match["extra"], []).append(match["requirement"])
    # An extra may name another one, as s3 names url
    found: dict[str, list[str]] = {}
    for extra, requirements in listed.items():
        found[extra] = []
        for requirement in requirements:
            other = _OTHER_EXTRA.match(requirement)
            found[extra] += listed.get(other["extra"], []) if other else [requirement]
    return found


def install_command(extra: str) -> str:
    """Return the command that installs an extra.

    It names the requirements themselves, because c3tools is not on the package index.
    """
    try:
        requirements = extra_requirements().get(extra)
    except ImportError:  # PackageNotFoundError is one
        requirements = None
    if requirements is None:
        return f'pip install ".[{extra}]"'
    return " ".join(["pip install", *(f'"{requirement}"' for requirement in requirements)])
