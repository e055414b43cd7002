"""Derives a command from its verbs: their signatures and docstrings give the options, the defaults and the help.

A command is a function of this folder. Its positional parameters are the command's arguments. Its keyword parameters
are options that only the shell has, or words or defaults that differ there; ``**options`` stands for all other options
of the verbs. Sources are parsed, not imported, so that `c3 X --help` and a wrong option load neither torch nor pyarrow.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import re
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand

import c3tools
from c3tools.errors import C3Error

from ._console import write_json
from ._files import json_destination, local_path, output_file, output_folder

SAMPLE = "0.1"  # the fraction that --sample means without a value
EXPERT_PANEL = "Options for experts and clusters"
EXPERT = (
    "executor address processes compile random_init image_timeout shard_size workers batch_size dtype backend "
    "precision prefix_keys follow_symlinks set monitor tensorboard max_logit_scale chunk weight_decay warmup log_every "
    "cone shard_rows nprobe role train_on epoch resamples inception"
).split()
SMALLEST: dict[str, float] = {  # values by option, or by command and option
    **dict.fromkeys("beams epochs steps seeds jobs processes shard_size shard_rows k n".split(), 1),
    **dict.fromkeys("batch_size nprobe sampling_steps width layers every".split(), 1),
    **dict.fromkeys("workers image_timeout resamples patience recall".split(), 0),
    **dict.fromkeys(("pairs", "dim", "batch"), 2),
    **{"limit": 3, "rows": 3, "export workers": 1, "demo sigma": 0, "demo captions": 2, "train-decoder pairs": 0},
    **{"simulate stable-region pairs": 3},
}
LARGEST = {"recall": 1}
BESIDE: dict[str, dict[str, Any]] = {  # what else an option has beside its name, default and words, for typer
    "store": {"metavar": "PATH", "envvar": "C3_STORE", "show_envvar": True},
    "json": {
        "metavar": "[PATH.json]",
        "parser": json_destination,
        "help": "Print the result as JSON, or write it to PATH.json if a path follows.",
    },
    "output": {"names": ["--output", "-o"], "parser": local_path},
    "search store": {"metavar": "PATH"},
    "verify store": {"metavar": "PATH"},
    "export output": {"names": ["--output", "-o"]},
    "preset": {"names": ["--preset", "-p"]},
    "format": {"names": ["--format", "-f"]},
    "start": {"names": ["--from"]},
    "within": {"names": ["--in"], "metavar": "MODALITY"},
    "list_all": {"names": ["--list"]},
    "normalise": {"names": ["--normalise/--keep-norms"]},
    "generate images": {"names": ["--image"]},
    "decoder": {"parser": local_path},
    "csv": {"parser": output_file},
    "html": {"parser": output_file},
    "save": {"parser": output_file},
    "figure": {
        "parser": output_file,
        "help": "File to draw the figure to: .svg, .png or .pdf. By default simulate-NAME.svg, none with --json.",
    },
    "figures": {"parser": output_folder, "metavar": "FOLDER"},
    "folder": {"parser": local_path, "metavar": "FOLDER"},
    "other": {"metavar": "NAME=FILE"},
    "scores": {"metavar": "NAME=FILE"},
    "set": {"metavar": "NAME=VALUE"},
    "random_init": {"metavar": "SEED"},
    "address": {"metavar": "HOST:PORT"},
    "keep": {"metavar": "first"},
    "by": {"metavar": "COLUMN"},
    "fractions": {"metavar": "TRAIN,VAL,TEST"},
    "sample": {"metavar": f"[FRACTION={SAMPLE}]"},
    "connect modalities": {"metavar": "A,B"},
    "tensorboard": {"metavar": "FOLDER"},
    "photos_to": {"metavar": "FOLDER"},
    "repository": {"metavar": "ORG/NAME"},
    "destination": {"metavar": "OUT"},
    "embed paths": {"metavar": "PATH..."},
    "connect lit paths": {"metavar": "PATH..."},
    "connect full paths": {"metavar": "PATH..."},
    "gap-report stores": {"metavar": "[STORE] [OTHER]"},
    "simulate paths": {"metavar": "[PATH]..."},
    "merge stores": {"metavar": "STORE..."},
    "verify path": {"metavar": "[STORE]", "envvar": "C3_STORE"},
    "connect apply heads": {"metavar": "[HEADS]"},
    "source": {"metavar": "[SOURCE]"},
}
_KINDS = (({"str", "Path", "Literal"}, str), ({"float"}, float), ({"int"}, int), ({"bool"}, bool))
_ENTRY = re.compile(r"^    (\w+): (.*(?:\n        .*)*)", re.MULTILINE)
_SECTION = re.compile(r"\n\n(?:Args|Returns|Raises|Yields):\n")


class _Parameter(NamedTuple):
    annotation: str
    default: Any  # inspect.Parameter.empty if a value is required
    words: str
    is_argument: bool


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


def derive(group: typer.Typer, name: str, place: str, verbs: str, leave_out: str = "") -> None:
    """Add a command to ``group``.

    Args:
        group: The application, or a group of commands in it.
        name: The words after `c3`, such as "connect heads".
        place: ``module.function`` of this folder.
        verbs: Names in c3tools whose parameters are the options, separated by spaces.
        leave_out: Parameters of the verbs that the command does not have, separated by spaces.
    """
    module, _, function = place.partition(".")
    own = _source(module, function)
    found: dict[str, _Parameter] = {}
    for verb in verbs.split():
        positional = {n: p._replace(is_argument=False) for n, p in _parameters(_verb(verb)).items()}
        found = {**positional, **found}
    for n, parameter in _parameters(own).items():
        words = parameter.words or (found[n].words if n in found else "")
        found[n] = parameter._replace(words=words)
    for n in leave_out.split():
        del found[n]

    def run(**values: Any) -> None:
        getattr(importlib.import_module(f".{module}", __package__), function)(**values)

    signature = [
        inspect.Parameter(
            n, inspect.Parameter.KEYWORD_ONLY, annotation=_annotate(name, n, found), default=found[n].default
        )
        for n in sorted(found, key=lambda n: (not found[n].is_argument, n == "json"))
    ]
    run.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in signature}
    paragraphs = _SECTION.split(ast.get_docstring(own) or "")[0].split("\n\n")
    run.__doc__ = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    group.command(name.rsplit(maxsplit=1)[-1], cls=JsonCommand)(run)


def summary(place: str) -> str:
    """Return the first line of the docstring of ``module.function`` of this folder."""
    return (ast.get_docstring(_source(*place.split("."))) or "").partition("\n")[0]


def _annotate(command: str, name: str, found: dict[str, _Parameter]) -> Any:
    """Return the type of an option, with what typer has to know about it."""
    if name == "context":
        return typer.Context
    annotation, default, words, is_argument = found[name]
    beside = dict(_beside(BESIDE, command, name) or {})
    names = beside.pop("names", [_flag(command, name, found)])
    kind = _type(annotation)
    if "int" in annotation or "float" in annotation:
        beside |= {"min": _beside(SMALLEST, command, name), "max": _beside(LARGEST, command, name)}
    if "Path" in annotation:
        beside.setdefault("metavar", "PATH")
    words = re.sub(r"``(\w+)``", lambda match: _flag(command, match[1], found), words).replace("``", "")
    if annotation.startswith(("list", "Sequence")) and not is_argument:
        words += " May be repeated."
    beside.setdefault("help", words)
    beside["show_default"] = default not in (None, False, "", [], inspect.Parameter.empty)
    kind = kind | None if default is None else kind
    if is_argument:
        return Annotated[kind, typer.Argument(**beside)]
    if name in EXPERT:
        beside["rich_help_panel"] = EXPERT_PANEL
    return Annotated[kind, typer.Option(*names, **beside)]


def _beside(table: dict[str, Any], command: str, name: str) -> Any:
    return table.get(f"{command} {name}", table.get(f"{command.split(maxsplit=1)[0]} {name}", table.get(name)))


def _flag(command: str, name: str, found: dict[str, _Parameter]) -> str:
    """Return how a parameter is typed: an option with its dashes, an argument in capitals."""
    if name not in found:
        return name
    if found[name].is_argument:
        return name.upper().removesuffix("S")
    if names := (_beside(BESIDE, command, name) or {}).get("names"):
        return str(names[0])
    flag = f"{'-' if len(name) == 1 else '--'}{name.replace('_', '-')}"
    return f"{flag}/--no-{flag[2:]}" if found[name].default is True else flag


def _type(annotation: str) -> Any:
    """Return the type that typer reads for an annotation; None if no text stands for such a value."""
    words = re.findall(r"\w+", annotation)
    if words[:1] == ["tuple"]:
        return tuple[tuple(_type(word) for word in words[1:])]  # type: ignore[misc]
    kind = next((kind for names, kind in _KINDS if names & set(words)), None)
    return list[kind] if kind and words[0] in ("list", "Sequence") else kind  # type: ignore[valid-type]


def _parameters(function: ast.FunctionDef) -> dict[str, _Parameter]:
    """Return the parameters of a function and their words in its docstring."""
    entries = (ast.get_docstring(function) or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
    words = {name: " ".join(text.split()) for name, text in _ENTRY.findall(entries)}
    arguments, empty = function.args, inspect.Parameter.empty
    required = [None] * (len(arguments.args) - len(arguments.defaults))
    found = {}
    for values, is_argument in (
        (zip(arguments.args, [*required, *arguments.defaults], strict=True), True),
        (zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True), False),
    ):
        for argument, value in values:
            annotation = ast.unparse(argument.annotation) if argument.annotation else ""
            if argument.arg == "self" or not (_type(annotation) or argument.arg == "context"):
                continue
            default = empty if value is None else ast.literal_eval(value)
            if isinstance(default, tuple) and not annotation.startswith("tuple"):
                default = ",".join(map(str, default)) if _type(annotation) is str else list(default)
            found[argument.arg] = _Parameter(annotation, default, words.get(argument.arg, ""), is_argument)
    return found


def _verb(name: str) -> ast.FunctionDef:
    """Return the definition of a public function, or of the method ``Class.name`` of a public class."""
    public, _, method = name.partition(".")
    return _definition(Path(c3tools.__file__).parent, c3tools._HOMES[public], public, method)


def _source(module: str, function: str) -> ast.FunctionDef:
    return _definition(Path(__file__).parent, module, function)


def _definition(folder: Path, module: str, *names: str) -> ast.FunctionDef:
    path = folder / module.replace(".", "/")
    node: Any = _parse(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))
    for name in filter(None, names):
        node = next(child for child in node.body if getattr(child, "name", None) == name)
    assert isinstance(node, ast.FunctionDef)
    return node


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
