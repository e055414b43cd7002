"""Settings of options that a Python parameter cannot express, such as flags and required other
options. For options that exclude each other, see `c3tools.choices.EXCLUSIONS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from c3tools.errors import C3Error
from c3tools.io.locations import is_url, location


@dataclass(frozen=True)
class OptionSettings:
    """Settings of an option or an argument; each default means that there is nothing to say.

    Attributes:
        flags: how it is typed; by default as its parameter is called, with dashes.
        metavar: what stands for its value in the help.
        parse: turns what is typed into the value.
        complete: returns the values that the shell completes. Choices of the signature are
            completed without it.
        is_expert: listed below the other options.
        is_repeated: may be given several times, though its annotation begins with no sequence.
        needs: parameters, one of which has to be given too, or this one has no effect.
        is_alone: what it asks for needs no other option.
        unused: returns why it has no effect with these values of all options, or None.
    """

    flags: tuple[str, ...] = ()
    metavar: str | None = None
    parse: Callable[[str], Any] | None = None
    complete: Callable[[], list[str]] | None = None
    is_expert: bool = False
    is_repeated: bool = False
    needs: tuple[str, ...] = ()
    is_alone: bool = False
    unused: Callable[[Mapping[str, Any]], str | None] | None = None


def option_settings(command: str, name: str) -> OptionSettings:
    """Return the settings of a parameter of a command: its own, or those of its group of commands,
    or of all commands.
    """
    group = command.partition(" ")[0]
    for key in (f"{command} {name}", f"{group} {name}", name):
        if key in _SETTINGS:
            return _SETTINGS[key]
    return OptionSettings()


def output_file(text: str | Path, suffix: str) -> Path:
    """Parse the path or URL of a file to write, before any work is done.

    Args:
        text: what was typed.
        suffix: the usual ending of what is written; see `require_replaceable`.

    Raises:
        C3Error: if its folder on this machine is missing or cannot be written to, if the path is
            a folder, or if there is a file that may not be replaced.
    """
    path = location(text)
    if isinstance(path, Path):
        existing = path if path.exists() else path.parent
        if path.is_dir() or not path.parent.is_dir() or not os.access(existing, os.W_OK):
            remedy = "Choose a file in an existing, writable folder."
            raise C3Error(f"The file {path} cannot be written.", remedy=remedy)
        if path.exists():
            # Not at the top: the lock that it imports takes 0.07 s of every start
            from c3tools.io.outputs import require_replaceable

            require_replaceable(path, suffix)
    return path


def extra_output(path: Path | None, default: str, json: str | None) -> Path | None:
    """Return the file to write besides printing: ``path``, else ``default``, or None with
    `--json`.
    """
    return path if path is not None or json else output_file(default, Path(default).suffix)


def _json_destination(text: str) -> str:
    if text != "-":
        output_file(text, ".json")
    return text


def _list_file(text: str | Path) -> Path:
    # Not at the top: it imports pyarrow
    from c3tools.store.kept_list import list_suffix

    path = _local_path(text)
    return output_file(path, list_suffix(path))


def _local_path(text: str | Path) -> Path:
    if is_url(text):
        raise C3Error(
            f"{text} is a URL, but a path on this machine is needed here.",
            remedy="Use a local folder, then copy it to the URL.",
        )
    return Path(text)


@dataclass(frozen=True)
class NamedFile:
    """A file of vectors and the name of their modality, as in ``--other audio=audio.npy``."""

    name: str
    path: Path


def _named_file(text: str) -> NamedFile:
    name, _, path = text.partition("=")
    if not name.isidentifier() or not path:
        raise C3Error(
            f"--other {text} does not have the form NAME=FILE.",
            remedy="For example: --other audio=a.npy",
        )
    return NamedFile(name, Path(path))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _store_unused(values: Mapping[str, Any]) -> str | None:
    """Return why `c3 generate` reads no store: a generator of c3 train-generator has its own
    means.
    """
    is_pretrained = str(values["generator"]).startswith("unclip:")
    return None if is_pretrained else "without a pre-trained generator (--generator unclip:...)"


def _recall_unused(values: Mapping[str, Any]) -> str | None:
    """Return why there is nothing to tune for a recall: the index has no inverted lists."""
    factory = values["factory"]
    return None if factory == "auto" or "IVF" in factory else f"with --factory {factory}"


def _faiss_unused(values: Mapping[str, Any]) -> str | None:
    """Return why nothing is indexed: nothing is embedded."""
    return "with --dry-run" if values["dry_run"] else None


def _presets() -> list[str]:
    from c3tools.transforms.presets import PRESETS

    return list(PRESETS)


def _backends() -> list[str]:
    from c3tools.encoders.backend import AUTO
    from c3tools.encoders.backends import BACKENDS

    return [AUTO, *BACKENDS]


_EXPERT = OptionSettings(is_expert=True)
_FOLDER = OptionSettings(parse=_local_path)
_PATHS = OptionSettings(metavar="PATH")
_NAMES = OptionSettings(parse=_names)
_OF_SAMPLING = OptionSettings(needs=("top_p",))
_OF_FILE = OptionSettings(needs=("file",))
_page_file = partial(output_file, suffix=".html")
_moments_file = partial(output_file, suffix=".safetensors")

# by parameter; by command and parameter, where a command differs
_SETTINGS: dict[str, OptionSettings] = {
    # Where results go
    "json": OptionSettings(parse=_json_destination, metavar="[PATH.json]"),
    "output": OptionSettings(flags=("--output", "-o"), parse=_local_path),
    "export output": OptionSettings(flags=("--output", "-o")),
    "index output": OptionSettings(flags=("--output", "-o")),
    "means save file": OptionSettings(parse=_moments_file, metavar="FILE"),
    "html": OptionSettings(parse=_page_file),
    "table": OptionSettings(parse=partial(output_file, suffix=".parquet")),
    "figure": OptionSettings(parse=partial(output_file, suffix=".svg")),
    "figures": OptionSettings(parse=location, metavar="FOLDER"),
    "caption overwrite": OptionSettings(needs=("json", "txt", "xmp")),
    # What is read
    "store": OptionSettings(metavar="PATH"),
    "search store": OptionSettings(metavar="PATH", needs=("key",)),
    "merge stores": OptionSettings(metavar="STORE"),
    "embed faiss": OptionSettings(unused=_faiss_unused),
    "leave-out tables": OptionSettings(metavar="TABLE"),
    "leave-out keys": OptionSettings(flags=("--key",), is_repeated=True),
    "leave-out modality": OptionSettings(needs=("keys",)),
    "leave-out reason": OptionSettings(needs=("keys",)),
    "leave-out yes": OptionSettings(needs=("tables", "keys")),
    "leave-out kept": OptionSettings(parse=_list_file, metavar="FILE"),
    "embed paths": _PATHS,
    "connect lit paths": _PATHS,
    "connect full paths": _PATHS,
    "source": OptionSettings(metavar="SOURCE"),
    "decoder": _FOLDER,
    "folder": _FOLDER,
    "repository": OptionSettings(metavar="ORG/NAME"),
    "generate images": OptionSettings(flags=("--image",)),
    "generate store": OptionSettings(metavar="PATH", unused=_store_unused),
    "generate split": OptionSettings(needs=("captions",)),
    "generate modality": OptionSettings(needs=("embeddings",)),
    "caption modality": OptionSettings(needs=("embeddings",)),
    "caption array": OptionSettings(needs=("embeddings",)),
    "search modality": OptionSettings(needs=("vector",)),
    "search where": OptionSettings(metavar="CONDITION"),
    "search weights": OptionSettings(parse=_numbers, metavar="W,W"),
    "search query_prompt": OptionSettings(needs=("text",)),
    # Vectors of other programs
    "other": OptionSettings(parse=_named_file, metavar="NAME=FILE", is_repeated=True),
    "image_array": OptionSettings(needs=("image",)),
    "text_array": OptionSettings(needs=("text",)),
    "text_meta": OptionSettings(needs=("text",)),
    "connect meta": OptionSettings(needs=("image", "text", "other")),
    "connect modalities": OptionSettings(parse=_names, metavar="A,B"),
    # Transforms
    "preset": OptionSettings(flags=("--preset", "-p"), complete=_presets),
    "presets": _NAMES,
    "normalise": OptionSettings(flags=("--normalise/--keep-norms",)),
    "format": OptionSettings(flags=("--format", "-f")),
    "role": _EXPERT,
    "train_on": _EXPERT,
    # Trainings
    "start": OptionSettings(flags=("--from",)),
    "set": OptionSettings(metavar="NAME=VALUE", is_expert=True),
    "monitor": _EXPERT,
    "cone": _EXPERT,
    "chunk": _EXPERT,
    # Captions, images and scores
    "temperature": _OF_SAMPLING,
    "caption seed": _OF_SAMPLING,
    "evaluate-captions seed": _OF_SAMPLING,
    "metrics": _NAMES,
    "resamples": _EXPERT,
    # Reports, simulations, search, splits
    "gap-report modalities": _NAMES,
    "pairs modalities": OptionSettings(parse=_names, metavar="A,B"),
    "clusters k": OptionSettings(flags=("-k",)),
    "clusters modalities": OptionSettings(parse=_names, metavar="A,B"),
    "mark_worst": OptionSettings(metavar="FRACTION"),
    "mark_below": OptionSettings(metavar="Z"),
    "pairs mark_splits": OptionSettings(needs=("mark_worst", "mark_below")),
    "by": OptionSettings(metavar="COLUMN"),
    "nprobe": _EXPERT,
    "recall": OptionSettings(unused=_recall_unused),
    "fractions": OptionSettings(parse=_numbers, metavar="TRAIN,VAL,TEST"),
    "split key_column": _OF_FILE,
    "split split_column": _OF_FILE,
    "list_all": OptionSettings(flags=("--list",), is_alone=True),
    "photos_to": OptionSettings(is_alone=True),
    # How fast, and on which machine
    "backend": OptionSettings(complete=_backends, is_expert=True),
    "precision": _EXPERT,
    "random_init": _EXPERT,
    "dtype": _EXPERT,
    "keep_columns": OptionSettings(parse=_names, metavar="A,B"),
    "shard_size": _EXPERT,
    "batch_size": _EXPERT,
    "workers": _EXPERT,
    "image_timeout": _EXPERT,
    "exact_decoding": _EXPERT,
    "follow_symlinks": _EXPERT,
    "executor": _EXPERT,
    "address": OptionSettings(metavar="HOST:PORT", is_expert=True, needs=("executor",)),
    "processes": OptionSettings(is_expert=True, needs=("executor",)),
}
