"""Results as repositories of the Hugging Face hub: pushed, fetched, and described by a card.

A repository has the files of a result, ``config.json`` (the name of its class) and a card.
``hf-hub:ORG/NAME`` or ``hf-hub:ORG/NAME@REVISION`` can be given instead of a folder. The mixins of
huggingface_hub are not used: they know one file of weights alone, and importing the client takes a
third of a second.
"""

from __future__ import annotations

import os
import re
import socket
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from ..errors import C3Error, UnreachableError, explain_missing
from .files import MALFORMED, read_json, write_json_atomically, write_text_atomically
from .locations import location

HUB = "hf-hub:"
CONFIG_FILE, CARD_FILE = "config.json", "README.md"
RepositoryType = Literal["model", "dataset"]
_PATIENCE = 5.0  # seconds for a server to answer
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Card:
    """The words and facts on the card of a repository.

    Attributes:
        summary: a sentence or two.
        code: Python that uses the result; ``{name}`` stands for the name of the repository.
        facts: the rows of a table; None leaves a row out.
        metadata: fields of the header, which the hub reads.
        base_model: the repository of the encoder on the hub; None if it is not there.
        validation_loss: of a trained model.
    """

    summary: str
    code: str
    facts: Mapping[str, object]
    metadata: Mapping[str, Any]
    base_model: str | None = None
    validation_loss: float | None = None


def _card_text(card: Card, name: str, license: str | None) -> str:
    """Return the card of the repository ``name``: its header, and the part for people."""
    from huggingface_hub import CardData, EvalResult, ModelCardData

    metadata = {"license": license, "library_name": "c3tools", **card.metadata}
    if card.base_model is not None:
        metadata["base_model"] = card.base_model
    data = CardData(**metadata)
    if card.validation_loss is not None:
        result = EvalResult(
            task_type=card.metadata["pipeline_tag"],
            dataset_type="c3tools-store",
            dataset_name="the val split of the store that it learned from",
            metric_type="loss",
            metric_value=card.validation_loss,
        )
        data = ModelCardData(model_name=name, eval_results=[result], **metadata)
    header = data.to_yaml().strip()
    lines = ["---", header, "---", "", f"# {name}", "", card.summary, ""]
    lines += ["```python", card.code.format(name=name), "```", "", "| | |", "|---|---|"]
    facts = {**card.facts, "licence": license or "not stated"}
    lines += [f"| {fact} | {_cell(value)} |" for fact, value in facts.items() if value is not None]
    fetch = f" Download it with `c3 pull {name}`." if "/" in name else ""
    lines += ["", f"Made with c3tools (Connect, Collapse, Corrupt).{fetch}", ""]
    return "\n".join(lines)


def _cell(value: object) -> str:
    """Return a value as the cell of a Markdown table."""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", r"\|").replace("\n", " ")


class HubRepository(ABC):
    """A class whose objects are repositories of the hub; a subclass has ``save(folder)``,
    ``load(folder)``, a card.
    """

    repository_type: ClassVar[RepositoryType] = "model"

    @abstractmethod
    def card(self) -> Card:
        """Return what its card says."""

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
    """Return the `location` of a folder or a URL; for ``hf-hub:ORG/NAME``, the folder on this
    machine with a copy of the repository.

    Raises:
        CorpusError: see `location`.
        UnreachableError: if it has to be fetched, and cannot be.
    """
    name = str(folder)
    if not name.startswith(HUB):
        return location(folder)
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
                    f"{repo_id} was not made by c3tools: its {CONFIG_FILE} does not specify a "
                    f"class.",
                    remedy="`c3 push` and push_to_hub create such repositories. To use an encoder, "
                    "pass --model.",
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
        is_folder = Path(repo_id).is_dir()
        kinds = "a folder on this machine, not" if is_folder else "neither a folder here nor"
        raise C3Error(
            f"{repo_id} is {kinds} the name of a repository.",
            remedy="Repositories of the Hugging Face hub are named ORG/NAME.",
        )
    with explain_missing("The Hugging Face hub"):
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
        remedy = "Try again when the server is reachable."
        if not is_online:  # what the client says then is for its own callers
            text = f"{repo_id} cannot be reached: {constants.ENDPOINT} does not answer."
        if status in (401, 403, 404):
            text = (
                f"{constants.ENDPOINT} has no {repo_id} of this kind and revision that you can "
                f"access ({status})."
            )
            remedy = "Check the name; log in with `hf auth login`, or set HF_TOKEN."
        raise UnreachableError(text, remedy=remedy) from error
