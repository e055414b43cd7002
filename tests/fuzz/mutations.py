"""Changes to valid files, of bytes and of JSON: drawn by hypothesis, or by chance where speed counts."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

Edit = tuple[int, int, int]  # the kind, the place and a detail, each below `_MOST`
_MOST = 65536
_COUNTS = (1, 1, 1, 2, 2, 3, 4, 6)
_TOKENS = (
    b"\0",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    b"\x01\0\0\0\0\0\0\0",
    b"\xff" * 8,
    b"\n",
    b'"',
    b",",
    b"\t",
    b"{",
    b"[" * 200_000,
    b"]",
    b"NaN",
    b"1e999",
    b"-1",
    b"9" * 5000,
    b"null",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"../../etc/passwd",
    b"PAR1",
    b"\r\n",
    b"'",
    b": *a",
    b"&a [*a]",
    b"!!python/object/apply:os.system ['true']",
)
_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**400,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "float32",
    "\ud800",
    "a" * 100_000,
    "../../../etc/passwd",
    [],
    {},
    [[]],
    [None],
    {"": None},
    [1, "a", None],
)
_BYTE_EDITS = ("flip", "set", "insert", "delete", "repeat", "truncate", "overwrite", "swap")
_JSON_EDITS = ("value", "remove", "rename", "nest", "swap", "add")

_number = st.integers(0, _MOST - 1)
edits = st.lists(st.tuples(_number, _number, _number), min_size=1, max_size=max(_COUNTS))


def random_edits(draw: random.Random) -> list[Edit]:
    """Return changes as `edits` draws them, in a fraction of the time."""
    numbers = iter(draw.randbytes(6 * max(_COUNTS)))
    pairs = [high << 8 | low for high, low in zip(numbers, numbers, strict=True)]
    return [(pairs[at], pairs[at + 1], pairs[at + 2]) for at in range(0, 3 * draw.choice(_COUNTS), 3)]


def mutate_bytes(content: bytes, changes: Sequence[Edit]) -> bytes:
    """The content with each change made in turn; a place is a fraction of what is there."""
    value = bytearray(content)
    for choice, place, detail in changes:
        kind = _BYTE_EDITS[choice % len(_BYTE_EDITS)]
        start = place * len(value) // _MOST
        span = 1 + detail % 64
        token = _TOKENS[detail % len(_TOKENS)]
        if kind == "flip" and value:
            value[start] ^= 1 << detail % 8
        elif kind == "set" and value:
            value[start] = detail % 256
        elif kind == "insert":
            value[start:start] = token
        elif kind == "delete":
            del value[start : start + span]
        elif kind == "repeat":
            value[start:start] = value[start : start + span] * (1 + detail % 3)
        elif kind == "truncate":
            del value[start:]
        elif kind == "overwrite":
            value[start : start + len(token)] = token
        elif kind == "swap":
            other = detail * len(value) // _MOST
            first, second = value[start : start + 8], value[other : other + 8]
            value[start : start + 8], value[other : other + 8] = second, first
    return bytes(value)


def mutate_json(content: bytes, changes: Sequence[Edit]) -> bytes:
    """JSON with values replaced, keys removed, renamed or added; the file itself stays valid JSON."""
    root = {"": json.loads(content)}
    for choice, place, detail in changes:
        kind = _JSON_EDITS[choice % len(_JSON_EDITS)]
        places = list(_places(root))
        parent, key = places[place % len(places)]
        value = copy.deepcopy(_VALUES[detail % len(_VALUES)])
        if kind == "value":
            parent[key] = value
        elif kind == "nest":
            parent[key] = [parent[key]]
        elif kind == "swap":
            other, other_key = places[detail % len(places)]
            parent[key], other[other_key] = json.loads(json.dumps([other[other_key], parent[key]]))
        elif kind == "add" and isinstance(parent, dict) and parent is not root:
            parent[str(value)[:50]] = value
        elif kind == "remove" and parent is not root:
            del parent[key]
        elif kind == "rename" and isinstance(parent, dict) and parent is not root:
            parent[f"{key}_"] = parent.pop(key)
    return json.dumps(root[""], indent=1, sort_keys=False).encode()


def mutate_lines(content: bytes, changes: Sequence[Edit]) -> bytes:
    """JSON lines, one of them changed as JSON."""
    lines = content.splitlines()
    row = changes[0][2] % len(lines)
    lines[row] = mutate_json(lines[row], changes).replace(b"\n", b" ")
    return b"\n".join(lines) + b"\n"


Mutation = Callable[[bytes, Sequence[Edit]], bytes]


def _places(value: Any) -> Any:
    """Every (container, key) below a value, the outermost first."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, below in list(items):
        yield value, key
        if isinstance(below, (dict, list)):
            yield from _places(below)
