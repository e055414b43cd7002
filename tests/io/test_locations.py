"""What the errors of servers and clients mean, and where servers are looked for."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest

from c3tools.errors import MissingExtraError, RefusedError, UnreachableError
from c3tools.io import locations
from c3tools.io.files import write_all
from c3tools.io.hub import is_reachable
from c3tools.io.locations import expand, kind_of, location, read_all, retrying
from tests.servers import Faults


def error(
    kind: Any = ConnectionError, status: int | None = None, cause: Exception | None = None
) -> Any:
    made = kind("a reason")
    made.__cause__, made.status = cause, status
    return made


def test_only_what_may_pass_is_tried_again() -> None:
    missing = FileNotFoundError
    cases: dict[type[BaseException], list[BaseException]] = {
        RefusedError: [
            *(error(status=status) for status in (400, 401, 403, 405)),
            error(missing, cause=error(status=403)),
            error(type("NoCredentialsError", (Exception,), {})),
        ],
        missing: [
            *(error(status=status) for status in (404, 410)),
            error(missing, cause=error(status=404)),
            error(missing, cause=error(missing)),
        ],
        ValueError: [
            error(ValueError, cause=error(OSError)),
            *(error(ValueError, status) for status in (430, 499)),
        ],
        UnreachableError: [
            error(ValueError, 429),
            error(ValueError, 500),
            error(missing, cause=error(OSError)),
        ],
        KeyboardInterrupt: [KeyboardInterrupt()],
    }
    for expected, raised in ((kind, one) for kind, errors in cases.items() for one in errors):
        call, again = Mock(side_effect=raised), expected is UnreachableError
        with pytest.raises(expected) as caught:
            retrying(call, "there")
        assert call.call_count == (6 if again else 1)
        assert ("there could not be reached in 6 attempts (a reason)" in str(caught.value)) == again


def test_what_is_tried_again_for_long_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(attempts: int | None = None) -> list[str]:
        caplog.clear()
        with pytest.raises(UnreachableError):
            retrying(Mock(side_effect=RuntimeError("down")), "s3://b/x\x1b", attempts)
        return caplog.messages

    assert failing() == []
    monkeypatch.setattr(locations, "_PATIENCE", 0)
    said = r"'s3://b/x\x1b' could not be reached yet (attempt {} of 6); trying again."
    assert failing() == [said.format(attempt) for attempt in range(1, 6)]
    assert failing(attempts=3) == []


def test_answers_that_are_cut_are_asked_for_six_times_in_all(s3: Faults) -> None:
    path, missing = location("s3://bucket/x.txt"), location("s3://bucket/y.txt")
    write_all(path, b"whole" * 100)
    before = s3.requests
    s3.every, s3.answer = 1, "cut"
    with pytest.raises(UnreachableError, match=r"s3://bucket/x\.txt .* in 6 attempts"):
        read_all(path)
    with pytest.raises(UnreachableError, match=r"s3://bucket/y\.txt .* in 6 attempts"):
        kind_of(missing)
    assert s3.requests - before <= 4 * 6
    s3.every = 3
    assert read_all(path) == b"whole" * 100


def test_a_server_is_asked_at_its_own_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", connect := MagicMock())
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert all(map(is_reachable, ("https://a.org/x", "http://a.org", "https://a.org:8443")))
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    assert is_reachable("https://a.org")
    asked = [("a.org", 443), ("a.org", 80), ("a.org", 8443), ("proxy", 3128)]
    assert connect.call_args_list == [((server, 5),) for server in asked]


def test_a_scheme_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "upath", None)
    for scheme, package in (("s3a", "s3fs"), ("gcs", "gcsfs"), ("https", "aiohttp")):
        with pytest.raises(MissingExtraError, match=f'(?s){scheme}://.*install .*"{package}>='):
            location(f"{scheme.upper()}://bucket/x://y")


def test_patterns_go_through_folders(tmp_path: Path) -> None:
    for name in ("a/b/x.jpg", "a/x.jpg", "b\\x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert expand(f"{tmp_path}/**/x.jpg") == [tmp_path / "a/b/x.jpg", tmp_path / "a/x.jpg"]
    assert expand(f"{tmp_path}/{{b\\x,a/x}}.jpg") == [tmp_path / "b\\x.jpg", tmp_path / "a/x.jpg"]
