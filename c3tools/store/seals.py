"""Files that carry a digest of themselves: a change of any byte shows.

The digest stands in the file's own metadata and is that of the file with the digest's place blanked, so one rename
brings content and digest together, and readers that know nothing of it are not disturbed.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from ..io.locations import read_all

_DIGITS = 64
_BEGIN, _END = b"[sha256-of-this-file:", b":sealed]"
_BLANK = b"-" * _DIGITS
_SEAL = re.compile(re.escape(_BEGIN) + rb"([0-9a-f]{64})" + re.escape(_END))
SEAL_PLACE = (_BEGIN + _BLANK + _END).decode()


def seal(path: Path) -> None:
    """Fill in the digest of a file whose metadata holds `SEAL_PLACE` once.

    Raises:
        ValueError: if it holds none or several.
    """
    content = path.read_bytes()
    if content.count(SEAL_PLACE.encode()) != 1:
        raise ValueError(f"{path} has {content.count(SEAL_PLACE.encode())} places for a seal, not one")
    start = content.index(SEAL_PLACE.encode()) + len(_BEGIN)
    digest = hashlib.sha256(content).hexdigest().encode()
    path.write_bytes(content[:start] + digest + content[start + _DIGITS :])


def seal_state(path: Path) -> bool | None:
    """Whether a file is as it was sealed; None where it carries no seal.

    Raises:
        OSError: if it cannot be read.
    """
    content = read_all(path)
    found = list(_SEAL.finditer(content))
    if not found:
        # half a seal is a damaged one: the other half of it was hit
        return False if _BEGIN in content or _END in content else None
    start, stop = found[0].span(1)
    digest = hashlib.sha256(content[:start] + _BLANK + content[stop:]).hexdigest().encode()
    return len(found) == 1 and digest == found[0][1]
