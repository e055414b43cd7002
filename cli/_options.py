"""Options that several commands share, each defined once."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from c3tools.errors import C3Error
from c3tools.io.locations import is_url, location

from ._console import write_json


def local_path(text: str | Path) -> Path:
    """Parse a path that cannot be a URL.

    Raises:
        C3Error: for a URL, which would otherwise be the name of a folder.
    """
    if is_url(text):
        raise C3Error(f"{text} is a URL; here a path on this machine is needed.", remedy="Name a folder, and copy it.")
    return Path(text)


def output_file(text: str | Path) -> Path:
    """Parse the path or URL of a file to write, before any work is done for it.

    Raises:
        C3Error: if its folder on this machine is missing or cannot be written to, or a folder has the name.
    """
    path = location(text)
    if not isinstance(path, Path):
        return path
    folder = path.parent
    if folder.exists() and not folder.is_dir():
        raise C3Error(f"{path} cannot be written: {folder} is a file.", remedy="Name a file in a folder.")
    if not folder.is_dir():
        remedy = f"Make it: mkdir -p {shlex.quote(str(folder))}"
        raise C3Error(f"{path} cannot be written: there is no folder {folder}.", remedy=remedy)
    if path.is_dir():
        raise C3Error(f"{path} cannot be written: it is a folder.", remedy="Name a file in it.")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise C3Error(f"{path} cannot be written: permission denied.", remedy="Name a file in another folder.")
    return path


def output_folder(text: str | Path) -> Path:
    """Parse the path or URL of a folder to write into, which is made if need be; its own folder has to be there.

    Raises:
        C3Error: if that is missing or cannot be written to, or a file has the name.
    """
    path = location(text)
    if not isinstance(path, Path) or path.is_dir():
        return path
    if path.exists():
        raise C3Error(f"{path} is a file, not a folder.", remedy="Name another folder.")
    return output_file(path)


def extra_output(given: Path | None, default: Path, json: str | None) -> Path | None:
    """Return the file to write beside what is printed: the one given, else ``default``; with `--json` none by default.

    Raises:
        C3Error: as `output_file`.
    """
    if given is not None:
        return given
    return None if json else output_file(default)


def json_destination(text: str) -> str:
    """Parse what follows `--json`: ``-``, or a path or URL as `output_file` takes it."""
    if text != "-":
        output_file(text)
    return text


def arguments(values: dict[str, Any], *others: str) -> dict[str, Any]:
    """Return the parameters of a command as keyword arguments of its verb, which has the same names and defaults.

    Args:
        values: ``locals()`` of the command, before it has other names.
        others: the parameters that are not passed on by name, beside ``json``.
    """
    return {name: value for name, value in values.items() if name not in ("json", *others)}


def named_files(items: list[str] | None) -> dict[str, Path]:
    """Read ``NAME=FILE`` options as a mapping.

    Raises:
        C3Error: if one is of another form.
    """
    files = {}
    for item in items or []:
        name, _, path = item.partition("=")
        if not name.isidentifier() or not path:
            raise C3Error(f"--other {item} is not NAME=FILE.", remedy="For example: --other audio=audio.npy")
        files[name] = Path(path)
    return files


StoreOption = Annotated[
    Path,
    typer.Option(
        "--store",
        parser=location,
        metavar="PATH",
        envvar="C3_STORE",
        help="The store of embeddings: a folder, or a URL (s3://, gs://).",
        show_envvar=True,
    ),
]
DecoderOption = Annotated[
    Path | None,
    typer.Option(
        "--decoder",
        parser=local_path,
        metavar="PATH",
        help="The folder of a trained decoder, or c3-mini: the bundled one of that model.",
        show_default="c3-decoder if it is there, else c3-mini",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="c3-mini (bundled, the default), ARCH/PRETRAINED as in open_clip, local-dir:PATH, hf-hub:ORG/NAME.",
        show_default=False,
    ),
]
RandomInitOption = Annotated[
    int | None,
    typer.Option("--random-init", metavar="SEED", help="Use the architecture with random weights from this seed."),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps; default: the best there is.", show_default=False)
]
PrecisionOption = Annotated[
    str, typer.Option("--precision", help="auto, fp32, bf16, fp16, or int8 (encoders on a CPU, by the extra int8).")
]
BackendOption = Annotated[
    str, typer.Option("--backend", help="auto, torch, openvino or onnx (CPUs; the extras openvino and onnx).")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of everything that is random.")]
SplitOption = Annotated[
    str | None, typer.Option("--split", help="Rows of this split only: train, val, test, or all.", show_default=False)
]
ImageOption = Annotated[
    Path | None,
    typer.Option("--image", help="Image vectors: npy, npz, pt, safetensors, csv, parquet.", show_default=False),
]
TextOption = Annotated[Path | None, typer.Option("--text", help="Text vectors, likewise.", show_default=False)]
OtherOption = Annotated[
    list[str] | None,
    typer.Option("--other", metavar="NAME=FILE", help="Vectors of another modality.", show_default=False),
]
MetaOption = Annotated[
    Path | None,
    typer.Option(
        "--meta",
        help="Ids, captions, splits: jsonl, csv or parquet with one row per image (per text without images).",
        show_default=False,
    ),
]
TextMetaOption = Annotated[
    Path | None,
    typer.Option("--text-meta", help="The same with one row per text, with a column image_key.", show_default=False),
]
ImageArrayOption = Annotated[
    str | None, typer.Option("--image-array", help="The array, tensor or column in --image.", show_default=False)
]
TextArrayOption = Annotated[
    str | None, typer.Option("--text-array", help="The array, tensor or column in --text.", show_default=False)
]
EmbeddingsOption = Annotated[
    Path | None,
    typer.Option(
        "--embeddings",
        parser=location,
        metavar="PATH",
        help="Embeddings of the same model: npy, npz, pt, safetensors, csv, parquet, or a store.",
        show_default=False,
    ),
]
EmbeddingsModalityOption = Annotated[str, typer.Option("--modality", help="What --embeddings are of: image or text.")]
EmbeddingsKeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        help="The array, tensor or column of --embeddings; of a store the modality, if it is not that of --modality.",
        show_default=False,
    ),
]
DtypeOption = Annotated[str, typer.Option("--dtype", help="Type of the embeddings on disk: float16 or float32.")]
TrainSplitOption = Annotated[str, typer.Option("--train-split", help="The split to learn from.")]
ExecutorOption = Annotated[str, typer.Option("--executor", help="local: this machine; ray: a Ray cluster (extra ray).")]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="The Ray cluster.",
        show_default="RAY_ADDRESS, that of this machine, or a new one on it",
    ),
]
ProcessesOption = Annotated[
    int | None,
    typer.Option("--processes", min=1, help="Worker processes on the cluster.", show_default="as many as fit"),
]

OverwriteOption = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace a former result of other settings in --output; it is kept as OUTPUT.previous."
    ),
]

DEFAULT_STORE = Path("c3-store")
DEFAULT_DECODER = Path("c3-decoder")
DEFAULT_GENERATOR = Path("c3-generator")


SAMPLE = "0.1"  # of a bare --sample


class JsonCommand(TyperCommand):
    """A command whose `--json` may stand alone (print) or be followed by a path that ends in .json (write).

    `--sample`, where there is one, may stand alone too.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Turn a bare `--json` into `--json -`, a bare `--sample` into `--sample 0.1`."""
        rewritten = []
        for argument, following in zip_longest(args, args[1:], fillvalue=""):
            rewritten.append(argument)
            if argument == "--json" and following != "-" and not following.endswith(".json"):
                rewritten.append("-")
            if argument == "--sample" and not following[:1].isdigit() and not following.startswith("."):
                rewritten.append(SAMPLE)
        return super().parse_args(ctx, rewritten)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; with a bare `--json`, an expected error is a JSON object on standard output too."""
        try:
            return super().invoke(ctx)
        except (C3Error, OSError) as error:
            if ctx.params.get("json") == "-" and not isinstance(error, BrokenPipeError):
                remedy = getattr(error, "remedy", None)
                write_json({"error": getattr(error, "message", str(error)), "remedy": remedy}, "-")
            raise


def command_group(help: str, *commands: Callable[..., None]) -> typer.Typer:
    """Return the commands as subcommands of one, named like their functions."""
    group = typer.Typer(no_args_is_help=True, help=help)
    for command in commands:
        group.command(command.__name__.replace("_", "-"), cls=JsonCommand)(command)
    return group


JsonOption = Annotated[
    str | None,
    typer.Option(
        "--json",
        parser=json_destination,
        metavar="[PATH.json]",
        help="Print the result as JSON, or write it to PATH.json.",
        show_default=False,
    ),
]
