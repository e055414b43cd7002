"""The exceptions that c3tools raises on purpose.

    C3Error                    errors that the user can solve, printed without a traceback
    ├── CorpusError            inputs: paths, images, captions files, columns
    ├── EncoderError           models: unknown names, weights that cannot be loaded, wrong shapes
    ├── StoreError             stores: missing, damaged, made with another model
    │   └── IncompleteStoreError   files that the manifest records are missing
    ├── OutputError            outputs: in use by another run, another finished result, other files
    ├── TransformError         pipelines: unfitted, wrong order or dimension; also a ValueError
    ├── ConnectError           contrastive training: too few pairs, invalid settings, failed runs
    ├── DecoderError           decoders: missing, damaged, made for other embeddings
    ├── GeneratorError         image generators: missing, damaged, for other embeddings, no photos
    ├── MetricError            scores: missing references, too few rows
    ├── UnreachableError       a server that stays down, wrong credentials; also an OSError
    │   └── RefusedError       a file that may not be read
    ├── InvalidOptionError     an option has a value that is not allowed; also a ValueError
    ├── UnusedOptionError      an option has no effect with the others; exit code 2 of `c3`
    ├── MissingExtraError      an optional dependency is not installed; also an ImportError
    └── MissingRequirementError    c3tools was installed without what it requires; an ImportError

Each message says what is wrong, where, and what to do.
"""

from __future__ import annotations

import errno
import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .extras import DISTRIBUTION, PACKAGES_OF_MODELS, install_command

# on the package index, the name c3tools belongs to another project
UPDATE = f"Update c3tools: pip install -U {DISTRIBUTION}"


class C3Error(Exception):
    """Base class of errors that the user can fix.

    Args:
        message: what is wrong, and where.
        remedy: what to do, in one sentence; shown on its own line.
    """

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message if remedy is None else f"{message}\n{remedy}")
        self.message = message
        self.remedy = remedy


class CorpusError(C3Error):
    """A path, an image, a captions file or one of its columns cannot be used."""


class EncoderError(C3Error):
    """A model is unknown, its weights cannot be loaded, or it does not fit the input."""


class StoreError(C3Error):
    """A store is missing, damaged, or was made with another model."""


class IncompleteStoreError(StoreError):
    """Files that a store's manifest records are missing."""


class OutputError(C3Error):
    """A folder cannot be written to, because another run is writing to it or its content would be
    lost.
    """


class TransformError(C3Error, ValueError):
    """A pipeline is unfitted, in a wrong order, or of another dimension.

    It is a ValueError because scikit-learn expects one from a transformer.
    """


class ConnectError(C3Error):
    """Contrastive training cannot start or failed, or its result is missing or damaged."""


class DecoderError(C3Error):
    """A decoder is missing, damaged, or was made for other embeddings."""


class GeneratorError(C3Error):
    """An image generator is missing, damaged, or was made for other embeddings, or has no photos to
    learn from.
    """


class MetricError(C3Error):
    """Scores cannot be computed from what was given."""


class UnreachableError(C3Error, ConnectionError):
    """A URL cannot be read or written, after several attempts; or a file is there and cannot be
    read.
    """


class RefusedError(UnreachableError):
    """A server refuses access to a URL."""


class InvalidOptionError(C3Error, ValueError):
    """An option has a value that it may not have.

    Args:
        name: of the parameter.
        allowed: values: "at least 1".
        value: what it is.
    """

    def __init__(self, name: str, allowed: str, value: object) -> None:
        super().__init__(f"{name} must be {allowed}, not {value!r}.")


class UnusedOptionError(C3Error):
    """An option has no effect with the other options or with the data.

    Args:
        option: as it is typed, such as ``--length-penalty``.
        reason: what it needs, or what leaves it without effect: "with --top-p".
    """

    def __init__(self, option: str, reason: str) -> None:
        super().__init__(f"{option} has no effect {reason}.")


class MissingExtraError(C3Error, ImportError):
    """An optional dependency is needed and not installed."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed.",
            remedy=f"Install the extra {extra} with: {install_command(extra)}",
        )


class MissingRequirementError(C3Error, ImportError):
    """A package that c3tools requires is not installed, as after ``pip install --no-deps``."""


_PACKAGE_OF = {"PIL": "pillow"}  # where the name that is imported is not how the package's begins


@contextmanager
def explain_missing(purpose: str) -> Iterator[None]:
    """Turn a failed import of a required package, or of one of the extra models, into an error that
    says what to install.

    Args:
        purpose: what needs it, at the beginning of a sentence.

    Raises:
        MissingExtraError: if the extra models includes the package.
        MissingRequirementError: for any other package, with the requirement.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module in ("", "c3tools"):
            raise
        if module in PACKAGES_OF_MODELS:
            package = PACKAGES_OF_MODELS[module]
            raise MissingExtraError(package, extra="models", purpose=purpose) from error
        package = _PACKAGE_OF.get(module, module)
        # Not at the top: it loads fifty modules
        from importlib.metadata import requires

        required = [line for line in requires(DISTRIBUTION) or [] if "extra ==" not in line]
        requirement = next((line for line in required if line.startswith(package)), None)
        remedy = f'Install it with: pip install "{requirement or package}".'
        if requirement is not None:
            remedy += " A normal installation of c3tools (without --no-deps) includes it."
        raise MissingRequirementError(
            f"{purpose} needs the package {package}, which is not installed.", remedy=remedy
        ) from error


def optional_module(name: str, package: str, *, extra: str, purpose: str) -> Any:
    """Import a module of an optional package.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(package, extra=extra, purpose=purpose) from error


def reason_of(error: BaseException) -> str:
    """Return what an error of any library says, in one line of at most 500 letters, without a full
    stop at its end; its kind if it says nothing.
    """
    text = getattr(error, "strerror", None) or str(error)
    one_line = " ".join(str(text).split())
    return one_line[:500].rstrip(".") or type(error).__name__


def remedy_of(error: OSError) -> str:
    """Return what to do about an error of the operating system in writing."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        todo = "Free some disk space"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        todo = "Make the path writable, or choose another"
    else:
        todo = "Check the path, its permissions and the free disk space"
    return f"{todo}, then run the same command again."


OUT_OF_MEMORY = "Out of memory. Finished work is kept."
# as torch, cuBLAS, cuDNN, OpenVINO, numpy and the loader of libraries say it; none has a class of
# its own for it
_SHORT_OF_MEMORY = re.compile(
    "out of memory|not enough memory|allocate memory|bad_alloc|failed to map segment"
    "|can't start new thread|ALLOC_FAILED|ALLOCATION_FAILED",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or the one that it was raised from, is for lack of memory."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        can_be_of_memory = isinstance(error, RuntimeError | ImportError | OSError)
        if can_be_of_memory and _SHORT_OF_MEMORY.search(str(error)):
            return True
        error = error.__cause__
    return False


@contextmanager
def note_on_interrupt(describe: Callable[[], str]) -> Iterator[None]:
    """Add to a KeyboardInterrupt of the block what is kept of the work, for `c3` and notebooks to
    show.

    Args:
        describe: returns it in words, and whether the same command continues.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(describe())
        raise
