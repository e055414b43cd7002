"""Options that several commands share."""

from __future__ import annotations

import math
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
    """Parse a path on this machine.

    Raises:
        C3Error: for a URL, which would otherwise be taken for the name of a folder.
    """
    if is_url(text):
        raise C3Error(
            f"{text} is a URL, but a path on this machine is needed here.",
            remedy="Use a local folder, and copy it to the URL afterwards.",
        )
    return Path(text)


def output_file(text: str | Path) -> Path:
    """Parse the path or URL of a file to write, before any work is done.

    Raises:
        C3Error: if its folder on this machine is missing or cannot be written to, or if the path is a folder.
    """
    path = location(text)
    if not isinstance(path, Path):
        return path
    folder = path.parent
    if folder.exists() and not folder.is_dir():
        raise C3Error(
            f"{path} cannot be written: {folder} is a file.", remedy="Choose a path whose parent is a folder."
        )
    if not folder.is_dir():
        remedy = f"Create it with: mkdir -p {shlex.quote(str(folder))}"
        raise C3Error(f"{path} cannot be written: the folder {folder} does not exist.", remedy=remedy)
    if path.is_dir():
        raise C3Error(f"{path} cannot be written: it is a folder.", remedy="Give the path of a file in this folder.")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise C3Error(f"{path} cannot be written: permission denied.", remedy="Choose a file in another folder.")
    return path


def output_folder(text: str | Path) -> Path:
    """Parse the path or URL of a folder to write into. It is created if it does not exist; its parent has to exist.

    Raises:
        C3Error: if the parent is missing or cannot be written to, or if the path is a file.
    """
    path = location(text)
    if not isinstance(path, Path) or path.is_dir():
        return path
    if path.exists():
        raise C3Error(f"{path} is a file, but a folder is needed.", remedy="Choose another path.")
    return output_file(path)


def extra_output(given: Path | None, default: Path, json: str | None) -> Path | None:
    """Return the file to write in addition to printing: ``given``, else ``default``, or None if `--json` is used.

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
        values: ``locals()`` of the command, taken before it defines other variables.
        others: parameters, besides ``json``, that are not passed on.
    """
    return {name: value for name, value in values.items() if name not in ("json", *others)}


def typed_option(context: typer.Context, *names: str) -> str | None:
    """Return the first of these options that was typed; defaults and values from the environment do not count."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            return f"--{name.replace('_', '-')}"
    return None


def named_files(items: list[str] | None) -> dict[str, Path]:
    """Read ``NAME=FILE`` options as a mapping.

    Raises:
        C3Error: if an item has another form.
    """
    files = {}
    for item in items or []:
        name, _, path = item.partition("=")
        if not name.isidentifier() or not path:
            raise C3Error(
                f"--other {item} is not of the form NAME=FILE.", remedy="For example: --other audio=audio.npy"
            )
        files[name] = Path(path)
    return files


StoreOption = Annotated[
    Path,
    typer.Option(
        "--store",
        parser=location,
        metavar="PATH",
        envvar="C3_STORE",
        help="The store of embeddings: a folder or a URL (s3://, gs://).",
        show_envvar=True,
    ),
]
DecoderOption = Annotated[
    Path | None,
    typer.Option(
        "--decoder",
        parser=local_path,
        metavar="PATH",
        help="The folder of a trained decoder, hf-hub:ORG/NAME, or c3-mini for the bundled decoder of that model.",
        show_default="c3-decoder if that folder exists, otherwise c3-mini",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="The model: c3-mini (bundled, the default), ARCH/PRETRAINED as in open_clip, local-dir:PATH or "
        "hf-hub:ORG/NAME.",
        show_default=False,
    ),
]
RandomInitOption = Annotated[
    int | None,
    typer.Option(
        "--random-init", metavar="SEED", help="Use random weights, drawn with this seed, instead of the trained ones."
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1 or mps.", show_default="the fastest available")
]
PrecisionOption = Annotated[
    str, typer.Option("--precision", help="auto, fp32, bf16, fp16, or int8 (encoders on a CPU; needs the extra int8).")
]
BackendOption = Annotated[
    str,
    typer.Option(
        "--backend", help="auto, torch, openvino or onnx (the last two are for CPUs and need the extra of that name)."
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed for all random numbers.")]
SplitOption = Annotated[
    str | None,
    typer.Option("--split", help="Use only the rows of this split: train, val, test or all.", show_default=False),
]
ImageOption = Annotated[
    Path | None,
    typer.Option(
        "--image", help="A file of image vectors: npy, npz, pt, safetensors, csv, jsonl or parquet.", show_default=False
    ),
]
TextOption = Annotated[
    Path | None, typer.Option("--text", help="A file of text vectors, in one of the same formats.", show_default=False)
]
OtherOption = Annotated[
    list[str] | None,
    typer.Option(
        "--other",
        metavar="NAME=FILE",
        help="A file of vectors of another modality, for example audio=audio.npy.",
        show_default=False,
    ),
]
MetaOption = Annotated[
    Path | None,
    typer.Option(
        "--meta",
        help="A table of ids, captions and splits: jsonl, csv or parquet, one row per image (or per text, without "
        "images).",
        show_default=False,
    ),
]
TextMetaOption = Annotated[
    Path | None,
    typer.Option(
        "--text-meta",
        help="A table like --meta with one row per text; its column image_key names the image.",
        show_default=False,
    ),
]
ImageArrayOption = Annotated[
    str | None,
    typer.Option("--image-array", help="The array, tensor or column of the --image file to read.", show_default=False),
]
TextArrayOption = Annotated[
    str | None,
    typer.Option("--text-array", help="The array, tensor or column of the --text file to read.", show_default=False),
]
EmbeddingsOption = Annotated[
    Path | None,
    typer.Option(
        "--embeddings",
        parser=location,
        metavar="PATH",
        help="Embeddings of the same model: a file (npy, npz, pt, safetensors, csv, jsonl, parquet) or a store.",
        show_default=False,
    ),
]
EmbeddingsModalityOption = Annotated[str, typer.Option("--modality", help="Modality of --embeddings: image or text.")]
EmbeddingsKeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        help="The array, tensor or column of --embeddings to read. For a store: the modality, if it is not --modality.",
        show_default=False,
    ),
]
DtypeOption = Annotated[
    str, typer.Option("--dtype", help="Number format of the embeddings on disk: float16 or float32.")
]
TrainSplitOption = Annotated[str, typer.Option("--train-split", help="The split to train on.")]
ExecutorOption = Annotated[
    str,
    typer.Option("--executor", help="Run on this machine (local) or on a Ray cluster (ray; needs the extra ray)."),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="Address of the Ray cluster.",
        show_default="RAY_ADDRESS, else the cluster of this machine, else a new one here",
    ),
]
ProcessesOption = Annotated[
    int | None,
    typer.Option(
        "--processes", min=1, help="Number of worker processes on the cluster.", show_default="as many as fit"
    ),
]

OverwriteOption = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace an existing result that has other settings. It is kept as OUTPUT.previous."
    ),
]

DEFAULT_STORE = Path("c3-store")
DEFAULT_DECODER = Path("c3-decoder")
DEFAULT_GENERATOR = Path("c3-generator")
SIGMA_RULES = (
    "auto: derived from how much captions of the same image differ. pairs: from the cosine of at least 10 images with "
    "their captions, those of the val split or of all splits but test."
)
SAMPLE = "0.1"  # the fraction that --sample means without a value


class JsonCommand(TyperCommand):
    """A command whose `--json` takes an optional path that ends in .json: without one, the result is printed.

    `--sample`, for commands that have it, takes an optional value too. No option takes NaN or an infinite number.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Turn `--json` without a value into `--json -`, and `--sample` without a value into `--sample 0.1`."""
        rewritten = []
        for argument, following in zip_longest(args, args[1:], fillvalue=""):
            rewritten.append(argument)
            if argument == "--json" and following != "-" and not following.endswith(".json"):
                rewritten.append("-")
            if argument == "--sample" and not following[:1].isdigit() and not following.startswith("."):
                rewritten.append(SAMPLE)
        rest: list[str] = super().parse_args(ctx, rewritten)
        option: Any
        for option in self.get_params(ctx):
            value = ctx.params.get(option.name)
            for number in value if isinstance(value, list | tuple) else [value]:
                if isinstance(number, float) and not math.isfinite(number):
                    raise typer.BadParameter(f"{number} is not a finite number.", ctx, option)
        return rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; if it prints JSON, also print an expected error as a JSON object on standard output."""
        try:
            return super().invoke(ctx)
        except (C3Error, OSError) as error:
            if ctx.params.get("json") == "-" and not isinstance(error, BrokenPipeError):
                remedy = getattr(error, "remedy", None)
                write_json({"error": getattr(error, "message", str(error)), "remedy": remedy}, "-")
            raise


def command_group(help: str, *commands: Callable[..., None]) -> typer.Typer:
    """Return a command with subcommands that are named after their functions."""
    group = typer.Typer(no_args_is_help=True, add_completion=False, help=help)
    for command in commands:
        group.command(command.__name__.replace("_", "-"), cls=JsonCommand)(command)
    return group


JsonOption = Annotated[
    str | None,
    typer.Option(
        "--json",
        parser=json_destination,
        metavar="[PATH.json]",
        help="Print the result as JSON, or write it to PATH.json if a path follows.",
        show_default=False,
    ),
]
