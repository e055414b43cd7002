"""Results that are folders: captioners, generators, pipelines, heads, towers. Written, checked,
described, shared.

A result is one JSON record with the SHA-256 of the other files beside it, none of which is a
pickle. These rules hold for every command that writes one:

- a new or empty folder is written to; a folder that contains anything else is never changed;
- the same command continues an interrupted run, and does nothing if the run is finished;
- a finished result of other settings or data is only replaced with ``--overwrite``, and kept as
  ``NAME.previous``.

What a result was made from is kept in its record: the settings of the command, and a digest of
these with the data.

On the Hugging Face hub a result is a repository of its files, ``config.json`` (the name of the
class) and a card. ``hf-hub:ORG/NAME`` or ``hf-hub:ORG/NAME@REVISION`` can be given instead of a
folder. The mixins of huggingface_hub are not used: they know one file of weights alone, and
importing the client takes a third of a second.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar
from urllib.parse import urlsplit

import numpy as np
from safetensors import SafetensorError

from ..errors import C3Error, OutputError, UnreachableError, note_on_interrupt
from ..reporter import SILENT, Reporter
from .files import (
    MALFORMED,
    make_folder,
    naming,
    read_json,
    recorded_file,
    settle,
    sha256_of,
    sync_folder,
    write_json_atomically,
    write_text_atomically,
)
from .locations import kind_of, names_in
from .lock import locked_file

FORMAT_VERSION = 1
HUB = "hf-hub:"
CONFIG_FILE, CARD_FILE = "config.json", "README.md"
T = TypeVar("T")
RepositoryType = Literal["model", "dataset"]
# a summary; Python that uses the result, with {name} for that of the repository; a table of facts;
# fields of the header
Card = tuple[str, str, Mapping[str, object], Mapping[str, Any]]
_DATA = (".json", ".parquet", ".safetensors")  # figures and cards may be removed
_PATIENCE = 5.0  # seconds for a server to answer
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass
class ArtifactType:
    """One kind of result."""

    name: str  # as messages call it: decoder
    record: str  # the file decoder.json
    error: type[C3Error]  # raised for results of this kind
    command: str  # that makes one: c3 train-decoder
    option: str = ""  # that chooses one: --decoder
    others: tuple[str, ...] = ()  # further files that show that a folder holds such a result
    again: str = "--overwrite"  # the option of the command that makes a result again


@contextmanager
def writing(
    folder: str | Path, kind: ArtifactType, content: Mapping[str, Any], *, keep: bool = True
) -> Iterator[Path]:
    """Yield a folder for the other files of a result, which appears whole or not at all; see
    `replacing`.

    Its record has the JSON values of ``content``, and the SHA-256 of the files with data.
    """
    with replacing(Path(folder), keep=keep) as new:
        yield new
        digests = {path.name: sha256_of(path) for path in new.iterdir() if path.suffix in _DATA}
        write_json_atomically(
            new / kind.record, {"format_version": FORMAT_VERSION, **content, "files": digests}
        )


@contextmanager
def reading(folder: str | Path, kind: ArtifactType) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the folder on this machine and the record of a result, after all its files were
    checked.

    Errors of reading in the block mean that the result is damaged.

    Raises:
        C3Error: of the kind's class, if there is no result, or a file of it is missing, damaged or
            of another layout.
        UnreachableError: if it has to be fetched from the hub, and cannot be.
    """
    folder = local_folder(folder)
    previous = _previous(folder)
    remedy = f"Make one with `{kind.command}`" + (
        f", or choose another with {kind.option}." if kind.option else "."
    )
    again = f"Make it again: `{kind.command} {kind.again}`."
    if (previous / kind.record).is_file():
        remedy = again = f"The previous {kind.name} is kept at {previous}: use it, or make another."
    try:
        content = read_json(folder / kind.record)
        if int(content["format_version"]) > FORMAT_VERSION:
            raise kind.error(
                f"{folder / kind.record} was written by a newer version of c3tools.",
                remedy="Update c3tools: pip install -U c3tools",
            )
        for name, digest in content["files"].items():
            path = recorded_file(folder, name)
            if not path.is_file() or sha256_of(path) != digest:
                raise kind.error(f"{path} is missing, damaged or cut short.", remedy=again)
        yield folder, content
    except (FileNotFoundError, NotADirectoryError):
        raise kind.error(
            f"There is no finished {kind.name} at {folder} ({kind.record} is missing).",
            remedy=remedy,
        ) from None
    except (*MALFORMED, RuntimeError, SafetensorError) as error:
        raise kind.error(
            f"The {kind.name} at {folder} is damaged ({error}).", remedy=again
        ) from error


def _previous(folder: Path) -> Path:
    """Return where the result that a new one replaced is kept."""
    return folder.with_name(f"{folder.name}.previous")


@contextmanager
def replacing(folder: Path, *, keep: bool = True) -> Iterator[Path]:
    """Yield a hidden folder to write to; when the block ends well it becomes ``folder``.

    What was there becomes `_previous`; without ``keep`` it is removed when the new result is in its
    place. At every moment the old or the new result is whole in one of the two; a run that is
    killed between the two renames leaves the old one as `_previous`.
    """
    new, old = (folder.with_name(f".{folder.name}.{name}.tmp") for name in ("new", "old"))
    if old.exists() and not folder.exists():
        old.rename(folder)  # the run before was killed between the renames
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    make_folder(new)
    try:
        with naming(folder):
            yield new
        for parent, _, names in os.walk(new):  # a power cut could leave files without content
            for name in names:
                settle(Path(parent) / name)
            sync_folder(Path(parent))
        former = _previous(folder) if keep else old
        if folder.exists():
            shutil.rmtree(former, ignore_errors=True)
            folder.rename(former)
        try:
            new.rename(folder)
        except BaseException:
            if not folder.exists() and former.exists():
                former.rename(folder)
            raise
        sync_folder(folder.parent)
    except SafetensorError as error:  # so it reports a full disk
        raise OSError(errno.EIO, str(error), str(folder)) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def digest_of(*parts: object) -> str:
    """Return a SHA-256 of settings and data: JSON values, dataclasses, arrays, columns of text, in
    their order.
    """
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(f"{part.dtype}{part.shape}".encode())
            for start in range(0, len(part), 8192):
                found.update(np.ascontiguousarray(part[start : start + 8192]).tobytes())
            continue
        if isinstance(part, Iterable) and not isinstance(part, str | Mapping):
            part = part.to_pylist() if hasattr(part, "to_pylist") else list(part)  # noqa: PLW2901
        found.update(json.dumps(part, sort_keys=True, default=_plain).encode())
    return found.hexdigest()


def _plain(value: object) -> object:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def holds_result(folder: Path, name: str, files: Iterable[str]) -> bool:
    """Return whether a folder or URL has a result, and so one of its ``files``; an empty or missing
    one has none.

    Raises:
        OutputError: if it is a file, or contains something else.
    """
    if kind_of(folder) == "file":
        raise OutputError(
            f"{folder} is a file, but a folder is needed.",
            remedy="Choose another folder.",
        )
    folders, plain = names_in(folder)
    there = [name for name in (*plain, *folders) if not name.startswith(".")]
    if there and not set(files) & set(there):
        raise OutputError(
            f"{folder} contains other files, such as {there[0]}, not a former {name}.",
            remedy="Choose a new or empty folder.",
        )
    return bool(there)


@dataclass
class Target:
    """A folder that a result is to be written to, and the finished result that may be there."""

    folder: Path
    kind: ArtifactType
    settings: Mapping[str, Any]  # that it is asked for with, as JSON values by name
    overwrite: bool  # whether a finished result may be replaced
    reporter: Reporter
    there: bool = False  # whether a finished result is there
    # its record, if it has the same settings; None if it is to be replaced
    former: Mapping[str, Any] | None = None

    def made_from(self, digest: str) -> dict[str, Any]:
        """Return what the record of the result has as ``made_from``, given a digest of settings and
        data.
        """
        return {"settings": dict(self.settings), "digest": digest}

    def finished(self, digest: str, load: Callable[[Path], T]) -> T | None:
        """Return the result that is there if it is of the run with this digest, and report that
        nothing is to do.

        Raises:
            OutputError: if it has the same settings, was made from other data, and is not to be
                replaced.
            C3Error: if it is damaged and not to be replaced.
        """
        if self.former is None:
            return None
        if self.former.get("made_from", {}).get("digest") != digest:
            self._refuse("it was made with the same settings, but from other data")
            return None
        try:
            found = load(self.folder)
        except C3Error:
            if not self.overwrite:
                raise
            return None
        self.reporter.message(
            f"{self.folder} already contains this {self.kind.name}; there is nothing to do."
        )
        return found

    def write(self, save: Callable[[Path], object]) -> None:
        """Write the result with ``save``, and report where the former one is kept."""
        kept = f"The {self.kind.name} was not written; run the same command again to write it."
        with note_on_interrupt(lambda: kept):
            save(self.folder)
        if self.there:
            self.reporter.message(
                f"The former {self.kind.name} was kept as {_previous(self.folder)}."
            )

    def _refuse(self, why: str) -> None:
        if not self.overwrite:
            raise OutputError(
                f"{self.folder} already contains a finished {self.kind.name}: {why}.",
                remedy="Choose another folder with --output, or replace it with --overwrite; it "
                "is then kept as "
                f"{_previous(self.folder)}.",
            )


@contextmanager
def reserve_output(
    folder: Path,
    kind: ArtifactType,
    settings: Mapping[str, Any],
    *,
    overwrite: bool,
    start: str | Path | None = None,
    reporter: Reporter = SILENT,
) -> Iterator[Target]:
    """Keep other runs off a folder while the block runs, and refuse what may not be replaced before
    anything is done.

    Raises:
        OutputError: if another run is writing there; if the folder contains another result that is
            not to be replaced, or anything else; or if it is that of ``start``, the result that a
            training starts from, or the former result would be moved there.
    """
    if start is not None and Path(start).resolve() in (
        folder.resolve(),
        _previous(folder).resolve(),
    ):
        raise OutputError(
            f"The training starts from {start}, but the new {kind.name} in {folder} would replace "
            f"it.",
            remedy="Choose another folder with --output.",
        )
    folder = folder if folder.name else folder.absolute()
    with locked_file(folder):
        plain = json.loads(json.dumps(settings, default=_plain))
        target = Target(folder, kind, plain, overwrite, reporter)
        if holds_result(folder, kind.name, (kind.record, *kind.others)):
            target.there = (folder / kind.record).is_file()
        if target.there:
            try:
                record = dict(read_json(folder / kind.record)["record"])
                former = dict(record.get("made_from", {}).get("settings", {}))
            except (OSError, *MALFORMED):
                record, former = {}, {}
            changed = [
                name for name, value in plain.items() if name not in former or former[name] != value
            ]
            target.former = None if changed else record
            if changed:
                named = [
                    f"{name} {former[name]}, not {plain[name]}"
                    for name in changed
                    if name in former
                ]
                other = f"it is damaged, or it was not made by {kind.command}"
                target._refuse(f"it was made with {'; '.join(named)}" if named else other)
        yield target


def _card_text(card: Card, name: str, license: str | None) -> str:
    """Return the card of the repository ``name``: its header, and the part for people."""
    from huggingface_hub import CardData

    summary, code, facts, metadata = card
    header = CardData(license=license, library_name="c3tools", **metadata).to_yaml().strip()
    lines = ["---", header, "---", "", f"# {name}", "", summary, ""]
    lines += ["```python", code.format(name=name), "```", "", "| | |", "|---|---|"]
    for key, value in {**facts, "licence": license or "not stated"}.items():
        text = (
            f"{value:,}"
            if isinstance(value, int)
            else f"{value:.4g}"
            if isinstance(value, float)
            else str(value)
        )
        text = text.replace("|", r"\|").replace("\n", " ")
        lines += [f"| {key} | {text} |"] if value is not None else []
    fetch = f" `c3 pull {name}` fetches it." if "/" in name else ""
    return "\n".join([*lines, "", f"Made with c3tools (Connect, Collapse, Corrupt).{fetch}", ""])


class HubRepository:
    """A class whose objects are repositories of the hub; a subclass has ``save(folder)``,
    ``load(folder)``, a card.
    """

    repository_type: ClassVar[RepositoryType] = "model"

    def card(self) -> Card:
        """Return what its card says: a summary, Python that uses it, a table of facts, and fields
        of the header.
        """
        raise NotImplementedError

    def save_repository(self, folder: Path) -> None:
        """Write the files to a folder, without card and ``config.json``."""
        self.save(folder)  # type: ignore[attr-defined]

    @classmethod
    def load_repository(cls, folder: Path, **options: Any) -> Self:
        """Read what `save_repository` wrote."""
        loaded: Self = cls.load(folder, **options)  # type: ignore[attr-defined]
        return loaded

    def save_pretrained(
        self, save_directory: str | Path, *, repo_id: str | None = None, license: str | None = None
    ) -> None:
        """Write a folder that is a repository of the Hugging Face hub: the files, ``config.json``
        and a card.

        Args:
            save_directory: the folder.
            repo_id: ``ORG/NAME``, for the card; by default the name of the folder.
            license: the hub's name of the licence, such as ``mit`` or ``cc-by-4.0``.

        Raises:
            C3Error: if the folder cannot be written.
        """
        from .. import __version__

        folder = Path(save_directory)
        self.save_repository(folder)
        config = {"class": type(self).__name__, "library_name": "c3tools", "version": __version__}
        write_json_atomically(folder / CONFIG_FILE, config)
        write_text_atomically(
            folder / CARD_FILE, _card_text(self.card(), repo_id or folder.name, license)
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        license: str | None = None,
    ) -> str:
        """Upload it to the Hugging Face hub in one commit; the repository is made if it is not
        there.

        Args:
            repo_id: ``ORG/NAME``.
            private: make a new repository private; None for the organisation's default.
            token: with the right to write; by default that of `hf auth login` or of the variable
                HF_TOKEN.
            revision: the branch; by default ``main``.
            license: see `save_pretrained`.

        Returns:
            The address of the commit.

        Raises:
            UnreachableError: if the hub does not answer, or refuses.
        """
        with tempfile.TemporaryDirectory() as temporary, _explained(repo_id) as online:
            if not online:
                raise ConnectionError("it does not answer")
            folder = Path(temporary) / "repository"
            self.save_pretrained(folder, repo_id=repo_id, license=license)
            from huggingface_hub import HfApi

            api, kind = HfApi(token=token, library_name="c3tools"), self.repository_type
            name = api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True).repo_id
            commit = api.upload_folder(
                repo_id=name,
                repo_type=kind,
                folder_path=folder,
                revision=revision,
                commit_message=f"Upload a {type(self).__name__} with c3tools",
                delete_patterns=["*.parquet"],  # of a larger store before
            )
        return str(getattr(commit, "commit_url", commit))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        **options: Any,
    ) -> Self:
        """Load it from a repository of the Hugging Face hub, or from a folder that
        `save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path: ``ORG/NAME``, or a folder, which comes first.
            revision: a branch, a tag or a commit; by default ``main``.
            token: for private repositories; by default that of `hf auth login` or of the variable
                HF_TOKEN.
            options: of the class, as for loading from a folder.

        Raises:
            UnreachableError: if the hub does not answer, or has no such repository.
            C3Error: if it holds something else, or is damaged.
        """
        folder, name = Path(pretrained_model_name_or_path), str(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = download_repository(name, cls.repository_type, revision=revision, token=token)
        found = class_of(folder)
        if found not in (None, cls.__name__):
            raise C3Error(
                f"{name} holds a {found}, not a {cls.__name__}.",
                remedy=f"Load it with c3tools.{found}.from_pretrained.",
            )
        return cls.load_repository(folder, **options)


def class_of(folder: Path) -> str | None:
    """Return the name of the class that a repository is of, by its ``config.json``; None if it does
    not say.
    """
    try:
        content = read_json(folder / CONFIG_FILE)
        return str(content["class"]) if content["library_name"] == "c3tools" else None
    except (OSError, *MALFORMED):
        return None


def local_folder(folder: str | Path) -> Path:
    """Return a path as it is; for ``hf-hub:ORG/NAME``, the folder on this machine with a copy of
    the repository.

    Raises:
        UnreachableError: if it has to be fetched, and cannot be.
    """
    name = str(folder)
    if not name.startswith(HUB):
        return Path(folder)
    repository, _, revision = name.removeprefix(HUB).partition("@")
    return download_repository(repository, revision=revision or None)


def download_repository(
    repo_id: str,
    repository_type: RepositoryType = "model",
    *,
    revision: str | None = None,
    token: str | None = None,
) -> Path:
    """Fetch a repository to the hub's cache and return its folder; only files that c3tools reads
    are fetched.

    Raises:
        UnreachableError: if the hub does not answer and there is no copy, or there is no such
            repository.
        C3Error: if it is of another program.
    """
    with _explained(repo_id) as online:
        from huggingface_hub import snapshot_download

        for patterns in ([CONFIG_FILE], ["*.json", "*.safetensors", "*.parquet", CARD_FILE]):
            fetched = snapshot_download(
                repo_id,
                repo_type=repository_type,
                revision=revision,
                token=token,
                local_files_only=not online,  # it would try for a minute
                allow_patterns=patterns,
                library_name="c3tools",
            )
            if class_of(Path(fetched)) is None:
                raise C3Error(
                    f"{repo_id} was not made by c3tools: its {CONFIG_FILE} names no class.",
                    remedy="`c3 push` and push_to_hub make such repositories; encoders are named "
                    "with --model.",
                )
    return Path(fetched)


def is_reachable(address: str) -> bool:
    """Return whether a server, or the proxy before it, takes connections; in a thread, as name
    look-ups may hang.
    """
    proxies = (
        os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    )
    target = urlsplit(next(filter(None, proxies), address))
    connected: list[int] = []

    def connect() -> None:
        port = target.port or (80 if target.scheme == "http" else 443)
        with suppress(OSError), socket.create_connection((target.hostname or "", port), _PATIENCE):
            connected.append(port)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return bool(connected)


@contextmanager
def _explained(repo_id: str) -> Iterator[bool]:
    """Yield whether the hub answers; turn errors of its client, and of the layers below, into one
    with a remedy.
    """
    if not _NAME.fullmatch(repo_id):
        raise C3Error(
            f"{repo_id} is neither a folder on this machine nor the name of a repository.",
            remedy="Repositories of the Hugging Face hub are named ORG/NAME.",
        )
    from huggingface_hub import constants

    is_online = is_reachable(constants.ENDPOINT)
    try:
        yield is_online
    except C3Error:
        raise
    except Exception as error:
        # the client raises whatever its layers raise, and they differ by version
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = " ".join(str(error).split())[:300]
        text = f"{repo_id} on {constants.ENDPOINT}: {reason}"
        remedy = "Try again when the server can be reached."
        if not is_online:  # what the client says then is for its own callers
            text = f"{repo_id} cannot be reached: {constants.ENDPOINT} does not answer."
        if status in (401, 403, 404):
            text = (
                f"{constants.ENDPOINT} has no {repo_id} of this kind and revision that you may "
                f"use ({status})."
            )
            remedy = "Check the name; log in with `hf auth login`, or set HF_TOKEN."
        raise UnreachableError(text, remedy=remedy) from error
