"""Derives a command from its verbs: their signatures and docstrings give the options, the defaults
and the help.

A command is a function of this folder. Its positional parameters are the command's arguments. Its
keyword parameters are options that only the shell has, or words or defaults that differ there;
``**options`` stands for all other options of the verbs. What it returns is what `--json` writes,
with the exit code behind it if that is not 0. A group may have one function, which is given the
verb; then arguments and help are the verb's. An entry "See `verb`." in a docstring stands for the
words of that verb. Sources are parsed, not imported, so that `c3 X --help` and a wrong option load
neither torch nor pyarrow.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import os
import re
import sys
import webbrowser
from collections.abc import Callable
from functools import cache, partial
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, NamedTuple, get_origin

import typer
from typer.core import TyperCommand

import c3tools
from c3tools.errors import C3Error
from c3tools.io.locations import is_url, location

from ._console import out, write_json


def output_file(text: str | Path) -> Path:
    """Parse the path or URL of a file to write, before any work is done.

    Raises:
        C3Error: if its folder on this machine is missing or cannot be written to, or if the path is
            a folder.
    """
    path = location(text)
    if isinstance(path, Path):
        there = path if path.exists() else path.parent
        if path.is_dir() or not path.parent.is_dir() or not os.access(there, os.W_OK):
            remedy = "Give a file in a folder that exists and can be written."
            raise C3Error(f"The file {path} cannot be written.", remedy=remedy)
    return path


def _json_destination(text: str) -> str:
    if text != "-":
        output_file(text)
    return text


def _local_path(text: str | Path) -> Path:
    if is_url(text):
        raise C3Error(
            f"{text} is a URL, but a path on this machine is needed here.",
            remedy="Use a local folder, and copy it to the URL afterwards.",
        )
    return Path(text)


def _named_file(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not name.isidentifier() or not path:
        raise C3Error(
            f"--other {text} is not of the form NAME=FILE.",
            remedy="For example: --other audio=a.npy",
        )
    return name, Path(path)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


_EXPERT_PANEL = "Options for experts and clusters"
_EXPERT = (
    "executor address processes random_init image_timeout shard_size workers batch_size dtype "
    "backend "
    "precision follow_symlinks set monitor chunk "
    "cone shard_rows nprobe role train_on resamples"
).split()
# what an option has beside its name, default and words: each table is by option, or by command and
# option
_SMALLEST: dict[str, float] = {
    **dict.fromkeys("beams epochs steps seeds jobs processes shard_size shard_rows k n".split(), 1),
    **dict.fromkeys("batch_size nprobe sampling_steps width layers every".split(), 1),
    "truncate_dim": 1,
    **dict.fromkeys("workers image_timeout resamples patience recall".split(), 0),
    **dict.fromkeys(("pairs", "dim"), 2),
    **{
        "rows": 3,
        "export workers": 1,
        "demo sigma": 0,
        "demo captions": 2,
        "train-decoder pairs": 0,
    },
}
_LARGEST = {"recall": 1}
_FLAGS: dict[str, list[str]] = {
    "output": ["--output", "-o"],
    "preset": ["--preset", "-p"],
    "format": ["--format", "-f"],
    "start": ["--from"],
    "within": ["--in"],
    "list_all": ["--list"],
    "normalise": ["--normalise/--keep-norms"],
    "generate images": ["--image"],
}
_PARSERS = {
    **dict.fromkeys(("output", "decoder", "folder"), _local_path),
    **dict.fromkeys(("html", "figure", "means save file", "means merge output"), output_file),
    **dict.fromkeys(("modalities", "presets", "metrics"), _names),
    "fractions": _numbers,
    "other": _named_file,
    "json": _json_destination,
    "figures": location,
    "export output": None,
}
_METAVARS = {
    "json": "[PATH.json]",
    "store": "PATH",
    "figures": "FOLDER",
    "other": "NAME=FILE",
    "set": "NAME=VALUE",
    "address": "HOST:PORT",
    "fractions": "TRAIN,VAL,TEST",
    "connect modalities": "A,B",
    "repository": "ORG/NAME",
    **dict.fromkeys(("embed paths", "connect lit paths", "connect full paths"), "PATH..."),
    "gap-report path": "[STORE]",
    "merge stores": "STORE...",
    "means merge files": "FILE...",
    "verify path": "[STORE]",
    "source": "[SOURCE]",
}
# values that the shell completes; --preset and --backend have tables of their own
_CHOICES = {
    "dtype": ["float16", "float32"],
    "executor": ["local", "ray"],
    "format": ["parquet", "npy", "safetensors", "hf"],
    "keep": ["first"],
    "long_texts": ["cut", "chunk", "mean"],
    "precision": ["auto", "fp32", "bf16", "fp16", "int8"],
    "role": ["auto", "training", "inference"],
    "size": ["tiny", "small", "base", "paper"],
    "ablate size": ["tiny", "small", "base"],
    "train-generator size": ["tiny", "small", "base"],
}
# spellings of earlier versions, and what says the same now
_FORMER_FLAGS = {
    "--meteor": "--metrics BLEU,ROUGE-L,CIDEr,METEOR",
    "--spice": "--metrics BLEU,ROUGE-L,CIDEr,SPICE",
    "--clip-score": "--metrics BLEU,ROUGE-L,CIDEr,CLIPScore",
}
# of commands without an option for it
_PAGES = {
    "ablate": "{output}/table.html",
    "ablate-images": "{output}/table.html",
    "demo": "{out}/demo.html",
}
_KINDS = (({"str", "Path", "Literal"}, str), ({"float"}, float), ({"int"}, int), ({"bool"}, bool))
_ENTRY = re.compile(r"^    (\w+): (.*(?:\n        .*)*)", re.MULTILINE)
_REFERENCE = re.compile(r"See `(\w+)`\.")
_SECTION = re.compile(r"\n\n(?:Args|Returns|Raises|Yields):\n")


class _Parameter(NamedTuple):
    annotation: str
    default: Any  # inspect.Parameter.empty if a value is required
    words: str
    is_argument: bool


class _JsonCommand(TyperCommand):
    """A command whose `--json` takes an optional path that ends in .json: without one, the result
    is printed.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Turn `--json` without a path into `--json -`, and refuse a second value for an option
        that has one, and flags of earlier versions.
        """
        flags = {flag for option in self.params for flag in option.opts}
        for argument in args:
            replacement = _FORMER_FLAGS.get(argument, "")
            if argument not in flags and replacement.partition(" ")[0] in flags:
                ctx.fail(f"{argument} is now {replacement}.")
        rewritten = []
        for argument, following in zip_longest(args, args[1:], fillvalue=""):
            rewritten.append(argument)
            if argument == "--json" and not following.endswith(".json"):
                ctx.meta["json"] = True
                rewritten += [] if following == "-" else ["-"]
        _, _, given = self.make_parser(ctx).parse_args(list(rewritten))
        single: Any = [o for o in given if not (o.multiple or getattr(o, "is_flag", False))]
        for option in single:
            if option.param_type_name == "option" and single.count(option) > 1:
                raise typer.BadParameter("one value was expected, not several.", ctx, option)
        return super().parse_args(ctx, rewritten)


def derive(group: typer.Typer, name: str, module: str, *verbs: str) -> None:
    """Add a command to ``group``.

    Args:
        group: The application, or a group of commands in it.
        name: The words after `c3`, such as "connect heads".
        module: The module of this folder that has a function of this name.
        verbs: Names in c3tools, whose parameters are the options; ``-name`` leaves one out.
    """
    own = _own(name, module)
    shared = own.name == name.partition(" ")[0] != name  # by the commands of a group
    found: dict[str, _Parameter] = {}
    for verb in verbs:
        if verb.startswith("-"):
            del found[verb[1:]]
            continue
        options = _parameters(_verb(verb))
        found = {
            **{n: p._replace(is_argument=p.is_argument and shared) for n, p in options.items()},
            **found,
        }
    for n, parameter in _parameters(own).items():
        found[n] = parameter._replace(
            words=parameter.words or (found[n].words if n in found else "")
        )
    takes_json = "json" in found
    page = _PAGES.get(name) or ("{html}" if "html" in found else None)
    if page:
        found["open"] = _Parameter("bool", False, "Open the HTML page in the browser.", False)
    words = "Print the result as JSON, or write it to PATH.json if a path follows."
    found["json"] = _Parameter("str | None", None, words, False)

    def run(**values: Any) -> None:
        json = values["json"] if takes_json else values.pop("json")
        show = page if page and values.pop("open") else None
        if show and "html" in values:
            values["html"] = values["html"] or output_file(f"{name}.html")
        out.quiet = json == "-"
        for n, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise C3Error(f"{_flags(name, n, found)[0]} must be a finite number, not {value}.")
            if n == "other":
                values[n] = dict(value or ())
        _import_pyarrow()
        command = getattr(importlib.import_module(f".{module}", __package__), own.name)
        result = (partial(command, getattr(c3tools, verbs[0])) if shared else command)(**values)
        value, code = result if isinstance(result, tuple) else (result, 0)
        if value is not None:
            write_json(value, json)
        if show:
            address = show.format(**values)
            webbrowser.open(address if is_url(address) else Path(address).resolve().as_uri())
        if code:
            raise typer.Exit(code)

    signature = [
        inspect.Parameter(
            n,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=_annotate(name, n, found),
            default=found[n].default,
        )
        for n in sorted(found, key=lambda n: (not found[n].is_argument, n == "json"))
    ]
    run.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in signature}
    paragraphs = _SECTION.split(ast.get_docstring(_verb(verbs[0]) if shared else own) or "")[
        0
    ].split("\n\n")
    run.__doc__ = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    group.command(name.rsplit(maxsplit=1)[-1], cls=_JsonCommand)(run)


def _import_pyarrow() -> None:
    """Import pyarrow without pandas: it imports it with the first array, half a second that no
    command needs.
    """
    finder: Any = SimpleNamespace(find_spec=_hide_pandas)
    sys.meta_path.insert(0, finder)
    try:
        import pyarrow

        pyarrow.array([])
    finally:
        sys.meta_path.remove(finder)


def _hide_pandas(name: str, *_: object) -> None:
    if name == "pandas":
        raise ModuleNotFoundError(name)


def summary(name: str, module: str) -> str:
    """Return the first paragraph of the docstring of a command, as one line."""
    paragraph = (ast.get_docstring(_own(name, module)) or "").partition("\n\n")[0]
    return " ".join(paragraph.split())


def _annotate(command: str, name: str, found: dict[str, _Parameter]) -> Any:
    """Return the type of an option, with what typer has to know about it."""
    annotation, default, words, is_argument = found[name]
    kind, parser = _type(annotation), _entry(_PARSERS, command, name)
    if parser in (_names, _numbers, _named_file):  # the first two take one text for all
        kind = list[str] if parser is _named_file else str
    words = re.sub(r"``(\w+)``", lambda match: _flags(command, match[1], found)[0], words).replace(
        "``", ""
    )
    if get_origin(kind) is list and not is_argument:
        words += " May be repeated."
    settings = {
        "help": words,
        "metavar": _entry(_METAVARS, command, name) or ("PATH" if "Path" in annotation else None),
        "parser": parser,
        "autocompletion": _completion(command, name),
        "show_default": default not in (None, False, "", [], inspect.Parameter.empty),
    }
    if kind in (int, float):
        settings |= {
            "min": _entry(_SMALLEST, command, name),
            "max": _entry(_LARGEST, command, name),
        }
    if default == "c3-store" or (command == "verify" and is_argument):
        settings["envvar"] = "C3_STORE"
    if name in _EXPERT:
        settings["rich_help_panel"] = _EXPERT_PANEL
    if is_argument:
        return Annotated[kind, typer.Argument(**settings)]
    return Annotated[kind, typer.Option(*_flags(command, name, found), **settings)]


def _completion(command: str, name: str) -> Callable[[], list[str]] | None:
    """Return the function that typer asks for the values of an option, if it has choices."""
    if name == "preset":
        return _presets
    if name == "backend":
        return _backends
    choices = _entry(_CHOICES, command, name)
    return choices and (lambda: choices)


def _presets() -> list[str]:
    from c3tools.transforms.presets import PRESETS

    return list(PRESETS)


def _backends() -> list[str]:
    from c3tools.encoders.backend import AUTO
    from c3tools.encoders.backends import BACKENDS

    return [AUTO, *BACKENDS]


def _entry(table: dict[str, Any], command: str, name: str) -> Any:
    return table.get(
        f"{command} {name}", table.get(f"{command.split(maxsplit=1)[0]} {name}", table.get(name))
    )


def _flags(command: str, name: str, found: dict[str, _Parameter]) -> list[str]:
    """Return how a parameter is typed: an option with its dashes, an argument in capitals."""
    if name not in found:
        return [name]
    if found[name].is_argument:
        return [name.upper().removesuffix("S")]
    flag = f"{'-' if len(name) == 1 else '--'}{name.replace('_', '-')}"
    return _entry(_FLAGS, command, name) or [
        f"{flag}/--no-{flag[2:]}" if found[name].default is True else flag
    ]


def _type(annotation: str) -> Any:
    """Return the type that typer reads for an annotation; None if no text stands for such a
    value.
    """
    words = re.findall(r"\w+", annotation)
    kind = next((kind for names, kind in _KINDS if names & set(words)), None)
    return list[kind] if kind and words[0] in ("list", "Sequence") else kind  # type: ignore[valid-type]


def _parameters(function: ast.FunctionDef) -> dict[str, _Parameter]:
    """Return the parameters of a function and their words in its docstring."""
    entries = (ast.get_docstring(function) or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
    words = {name: " ".join(text.split()) for name, text in _ENTRY.findall(entries)}
    arguments, empty = function.args, inspect.Parameter.empty
    required = [None] * (len(arguments.args) - len(arguments.defaults))
    found = {}
    for argument, value in zip(
        [*arguments.args, *arguments.kwonlyargs],
        [*required, *arguments.defaults, *arguments.kw_defaults],
        strict=True,
    ):
        annotation = ast.unparse(argument.annotation) if argument.annotation else ""
        if argument.arg == "self" or not _type(annotation):
            continue
        default = empty if value is None else ast.literal_eval(value)
        said = words.get(argument.arg, "")
        if elsewhere := _REFERENCE.fullmatch(said):
            said = _parameters(_verb(elsewhere[1]))[argument.arg].words
        default = list(default) if isinstance(default, tuple) else default
        found[argument.arg] = _Parameter(annotation, default, said, argument in arguments.args)
    return found


def _verb(name: str) -> ast.FunctionDef:
    """Return the definition of a public function, or of the method ``Class.name`` of a public
    class.
    """
    names = name.split(".")
    path = Path(c3tools.__file__).parent / c3tools._HOMES[names[0]].replace(".", "/")
    node: Any = _parse(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))
    for part in names:
        node = next(child for child in node.body if getattr(child, "name", None) == part)
    assert isinstance(node, ast.FunctionDef)
    return node


def _own(name: str, module: str) -> ast.FunctionDef:
    """Return the definition of the function of this folder that is a command (``import_`` of
    import), or its group.
    """
    source = _parse(Path(__file__).with_name(f"{module}.py"))
    there = {
        node.name.removesuffix("_"): node
        for node in source.body
        if isinstance(node, ast.FunctionDef)
    }
    return next(there[word] for word in name.replace("-", "_").split()[::-1] if word in there)


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
