"""What the errors of servers and clients mean, and where servers are looked for."""

from __future__ import annotations

import socket
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from c3tools.errors import MissingExtraError, RefusedError, UnreachableError
from c3tools.io.artifact import answers
from c3tools.io.locations import expand, location, retrying


def error(kind: type[Exception] = ConnectionError, status: int | None = None, cause: Exception | None = None) -> Any:
    made: Any = kind("a reason")
    made.__cause__ = cause
    if status:
        made.status = status
    return made


@pytest.mark.parametrize(
    ("raised", "expected", "calls"),
    [
        *((error(status=status), RefusedError, 1) for status in (400, 401, 403, 405)),
        (error(FileNotFoundError, cause=error(status=403)), RefusedError, 1),
        (error(type("NoCredentialsError", (Exception,), {})), RefusedError, 1),
        *((error(status=status), FileNotFoundError, 1) for status in (404, 410)),
        (error(FileNotFoundError, cause=error(status=404)), FileNotFoundError, 1),
        (error(FileNotFoundError, cause=error(FileNotFoundError)), FileNotFoundError, 1),
        (error(ValueError, cause=error(OSError)), ValueError, 1),
        *((error(ValueError, status), ValueError, 1) for status in (430, 499)),
        *((error(ValueError, status), UnreachableError, 6) for status in (429, 500)),
        (error(FileNotFoundError, cause=error(OSError)), UnreachableError, 6),
        (KeyboardInterrupt(), KeyboardInterrupt, 1),
    ],
)
def test_only_what_may_pass_is_tried_again(raised: BaseException, expected: type[BaseException], calls: int) -> None:
    tried = []

    def call() -> None:
        tried.append(1)
        raise raised

    with pytest.raises(expected) as caught:
        retrying(call, "there")
    assert len(tried) == calls
    assert ("there could not be reached in 6 attempts (a reason)" in str(caught.value)) == (calls > 1)


@pytest.mark.parametrize(
    ("address", "proxy", "server"),
    [
        ("https://a.org/x", "", ("a.org", 443)),
        ("http://a.org", "", ("a.org", 80)),
        ("https://a.org:8443", "", ("a.org", 8443)),
        ("https://a.org", "http://proxy:3128", ("proxy", 3128)),
    ],
)
def test_a_server_is_asked_at_its_own_port(
    monkeypatch: pytest.MonkeyPatch, address: str, proxy: str, server: tuple[str, int]
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy if name == "HTTPS_PROXY" else "")
    asked: list[Any] = []

    def connect(*arguments: Any) -> Any:
        asked.extend(arguments)
        return nullcontext()

    monkeypatch.setattr(socket, "create_connection", connect)
    assert answers(address) and asked == [server, 5]


@pytest.mark.parametrize(("scheme", "extra"), [("s3a", "s3"), ("gcs", "gs"), ("https", "url")])
def test_a_scheme_names_its_extra(monkeypatch: pytest.MonkeyPatch, scheme: str, extra: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, "upath", None)
    with pytest.raises(MissingExtraError, match=f"{scheme}://") as missing:
        location(f"{scheme.upper()}://bucket/x://y")
    assert f"c3tools[{extra}]" in str(missing.value.remedy)


def test_patterns_go_through_folders(tmp_path: Path) -> None:
    for name in ("a/b/x.jpg", "a/x.jpg", "b\\x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert expand(f"{tmp_path}/**/x.jpg") == [tmp_path / "a/b/x.jpg", tmp_path / "a/x.jpg"]
    assert expand(f"{tmp_path}/{{b\\x,a/x}}.jpg") == [tmp_path / "b\\x.jpg", tmp_path / "a/x.jpg"]
