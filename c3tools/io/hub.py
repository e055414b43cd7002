"""The Hugging Face hub: trained results and stores as repositories with a card.

A repository contains the files that `save` writes, ``config.json`` (the name of the class) and a card, ``README.md``.
``hf-hub:ORG/NAME`` or ``hf-hub:ORG/NAME@REVISION`` can be given instead of the folder of a trained result.

The mixins of huggingface_hub are not used. They load an object from one file of weights and the arguments of its class,
but a captioner also has a tokenizer, a fitted pipeline and checksums. They would also import the client of the hub with
every pipeline, which takes a third of a second. Here the client is imported when it is needed.
"""

from __future__ import annotations

import os
import re
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from ..errors import C3Error, UnreachableError
from .files import MALFORMED, read_json, write_json_atomically, write_text_atomically

HUB = "hf-hub:"
CONFIG_FILE, CARD_FILE = "config.json", "README.md"
Scores = Mapping[str, Mapping[str, float]]  # by data set and metric
RepositoryType = Literal["model", "dataset"]
_PATIENCE = 5.0  # seconds for a server to answer
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_DATASET_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Card:
    """The part of a card that follows from the result itself.

    Attributes:
        summary: one paragraph.
        code: Python that uses the result, with ``{name}`` for that of the repository.
        facts: a table of names and values.
        tags: of the repository, in addition to ``c3tools``.
        task: the hub's name of the task, such as ``image-to-text``; None if it has none.
        loss: the best validation loss; None without one.
        metadata: further fields of the card's header.
    """

    summary: str
    code: str
    facts: Mapping[str, object]
    tags: Sequence[str] = ()
    task: str | None = None
    loss: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


class HubRepository:
    """A class whose objects are repositories of the hub."""

    repository_type: ClassVar[RepositoryType] = "model"

    def card(self) -> Card:
        """Return the facts of its card."""
        raise NotImplementedError

    def save_repository(self, folder: Path) -> None:
        """Write the files to a folder, without card and ``config.json``."""
        self.save(folder)  # type: ignore[attr-defined]

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        repo_id: str | None = None,
        license: str | None = None,
        data: Sequence[str] = (),
        scores: Scores | None = None,
    ) -> None:
        """Write a folder that is a repository of the Hugging Face hub: the files, ``config.json`` and a card.

        Args:
            save_directory: the folder.
            repo_id: ``ORG/NAME``, for the card; by default the name of the folder.
            license: the hub's name of the licence, such as ``mit`` or ``cc-by-4.0``.
            data: names of the data it was made from; those of data sets on the hub become links.
            scores: by data set, then by metric: ``{"flickr8k test": {"CIDEr": 49.6}}``.

        Raises:
            C3Error: if the folder cannot be written.
        """
        from .. import __version__

        folder = Path(save_directory)
        self.save_repository(folder)
        name = repo_id or folder.name
        config = {"class": type(self).__name__, "library_name": "c3tools", "version": __version__}
        write_json_atomically(folder / CONFIG_FILE, config)
        text = _card_text(self.card(), self.repository_type, name, license, data, scores or {})
        write_text_atomically(folder / CARD_FILE, text)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
        license: str | None = None,
        data: Sequence[str] = (),
        scores: Scores | None = None,
    ) -> str:
        """Upload it to the Hugging Face hub in one commit; the repository is made if it is not there.

        Args:
            repo_id: ``ORG/NAME``.
            private: make a new repository private; None for the organisation's default.
            token: with the right to write; by default that of `hf auth login` or of the variable HF_TOKEN.
            revision: the branch; by default ``main``.
            create_pr: open a pull request instead.
            commit_message: of the commit.
            license, data, scores: see `save_pretrained`.

        Returns:
            The address of the commit.

        Raises:
            UnreachableError: if the hub does not answer, or refuses.
        """
        _check_name(repo_id)
        kind = self.repository_type
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "repository"
            self.save_pretrained(folder, repo_id=repo_id, license=license, data=data, scores=scores)
            with _explained(repo_id):
                from huggingface_hub import HfApi

                api = HfApi(token=token, library_name="c3tools")
                name = api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True).repo_id
                commit = api.upload_folder(
                    repo_id=name,
                    repo_type=kind,
                    folder_path=folder,
                    revision=revision,
                    create_pr=create_pr,
                    commit_message=commit_message or f"Upload a {type(self).__name__} with c3tools",
                    delete_patterns=["data/*", "moments/*"] if kind == "dataset" else None,  # of a larger store before
                )
        return str(getattr(commit, "commit_url", commit))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> Self:
        """Load it from a repository of the Hugging Face hub, or from a folder that `save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path: ``ORG/NAME``, or a folder, which comes first.
            revision: a branch, a tag or a commit; by default ``main``.
            token: for private repositories; by default that of `hf auth login` or of the variable HF_TOKEN.
            cache_dir: where files are kept; by default the hub's cache.
            local_files_only: use nothing but what is there.
            options: of the class, as for loading from a folder.

        Raises:
            UnreachableError: if the hub does not answer, or has no such repository.
            C3Error: if it holds something else, or is damaged.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = download_repository(
                str(pretrained_model_name_or_path),
                cls.repository_type,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
        found = class_of(folder)
        if found not in (None, cls.__name__):
            raise C3Error(
                f"{pretrained_model_name_or_path} holds a {found}, not a {cls.__name__}.",
                remedy=f"Load it with c3tools.{found}.from_pretrained.",
            )
        return cls.load_repository(folder, **options)

    @classmethod
    def load_repository(cls, folder: Path, **options: Any) -> Self:
        """Read what `save_repository` wrote."""
        loaded: Self = cls.load(folder, **options)  # type: ignore[attr-defined]
        return loaded


def class_of(folder: Path) -> str | None:
    """Return the name of the class that a repository is of, by its ``config.json``; None if it does not say."""
    try:
        content = read_json(folder / CONFIG_FILE)
        return str(content["class"]) if content["library_name"] == "c3tools" else None
    except (OSError, *MALFORMED):
        return None


def local_folder(folder: str | Path) -> Path:
    """Return a path as it is; for ``hf-hub:ORG/NAME``, the folder on this machine with a copy of the repository.

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
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Fetch a repository to the hub's cache and return its folder; only files that c3tools reads are fetched.

    Raises:
        UnreachableError: if the hub does not answer and there is no copy, or there is no such repository.
        C3Error: if it is of another program.
    """
    from huggingface_hub import constants, snapshot_download

    _check_name(repo_id)
    there = local_files_only or not answers(constants.ENDPOINT)  # the client would try for a minute
    folder = Path()
    for patterns in ([CONFIG_FILE], ["*.json", "*.safetensors", "data/*.parquet", CARD_FILE]):
        with _explained(repo_id, reading=True):
            fetched = snapshot_download(
                repo_id,
                repo_type=repository_type,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=there,
                allow_patterns=patterns,
                library_name="c3tools",
            )
        folder = Path(fetched)
        if class_of(folder) is None:
            raise C3Error(
                f"{repo_id} was not made by c3tools: its {CONFIG_FILE} names no class.",
                remedy="`c3 push` and push_to_hub make such repositories; encoders are named with --model.",
            )
    return folder


def answers(address: str) -> bool:
    """Return whether a server, or the proxy before it, takes connections; in a thread, as name look-ups may hang."""
    proxies = (os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"))
    target = urlsplit(next(filter(None, proxies), address))
    connected: list[bool] = []

    def connect() -> None:
        port = target.port or (80 if target.scheme == "http" else 443)
        with suppress(OSError), socket.create_connection((target.hostname or "", port), _PATIENCE):
            connected.append(True)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return bool(connected)


def _check_name(repo_id: str) -> None:
    if not _NAME.fullmatch(repo_id):
        raise C3Error(
            f"{repo_id} is neither a folder on this machine nor the name of a repository.",
            remedy="Repositories of the Hugging Face hub are named ORG/NAME.",
        )


@contextmanager
def _explained(repo_id: str, reading: bool = False) -> Iterator[None]:
    """Turn errors of the hub's client, and of the layers below it, into one error with a remedy."""
    from huggingface_hub import constants

    server = constants.ENDPOINT
    try:
        if not reading and not answers(server):
            raise ConnectionError
        yield
    except Exception as error:  # the client raises whatever its layers raise, and they differ by version
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403, 404) and reading:
            text = f"{server} has no repository {repo_id} of this kind or revision, or it is private."
            remedy = "Check the name; for a private one log in with `hf auth login`, or set HF_TOKEN."
        elif status in (401, 403):
            text = f"{server} does not let you write to {repo_id} ({status})."
            remedy = "Log in with `hf auth login`, or set HF_TOKEN, with a token that may write there."
        elif status is None and not answers(server):
            text = f"{repo_id} is not on this machine, and {server} does not answer."
            text, remedy = text if reading else f"{server} does not answer.", "Try again when it can be reached."
        else:
            reason = " ".join(str(error).split())[:300]
            text, remedy = f"{repo_id} on {server}: {type(error).__name__}: {reason}", "Try again later."
        raise UnreachableError(text, remedy=remedy) from error


def _card_text(
    card: Card, kind: RepositoryType, name: str, license: str | None, data: Sequence[str], scores: Scores
) -> str:
    """Return the text of a card: its header, and the part for people."""
    from huggingface_hub import DatasetCardData, EvalResult, ModelCardData

    links = [entry for entry in data if _DATASET_NAME.fullmatch(entry)]
    tags = ["c3tools", *card.tags]
    header: Any
    if kind == "dataset":
        header = DatasetCardData(license=license, tags=tags, source_datasets=links or None, **card.metadata)
    else:
        measured = {**({"validation": {"loss": card.loss}} if card.loss is not None else {}), **scores}
        results = [
            EvalResult(
                task_type=card.task or "other",
                dataset_type=re.sub(r"\W+", "-", dataset.lower()).strip("-"),
                dataset_name=dataset,
                metric_type=re.sub(r"\W+", "-", metric.lower()).strip("-"),
                metric_name=metric,
                metric_value=round(float(value), 4),
            )
            for dataset, metrics in measured.items()
            for metric, value in metrics.items()
        ]
        header = ModelCardData(
            model_name=name,
            library_name="c3tools",
            pipeline_tag=card.task,
            license=license,
            tags=tags,
            datasets=links or None,
            eval_results=results or None,
            **card.metadata,
        )
    facts = {**card.facts, "data": ", ".join(data) or None, "licence": license or "not stated"}
    table = [f"| {key} | {_cell(value)} |" for key, value in facts.items() if value is not None]
    lines = ["---", header.to_yaml().strip(), "---", "", f"# {name}", "", card.summary, ""]
    lines += ["```python", card.code.format(name=name), "```", "", "| | |", "|---|---|", *table]
    for dataset, metrics in scores.items():
        lines += ["", f"| {_cell(dataset)} | |", "|---|---|"]
        lines += [f"| {_cell(metric)} | {value:.4g} |" for metric, value in metrics.items()]
    fetch = f" `c3 pull {name}` fetches it." if "/" in name else ""
    lines += ["", f"Made with c3tools (Connect, Collapse, Corrupt).{fetch}", ""]
    return "\n".join(lines)


def _cell(value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", r"\|").replace("\n", " ")
