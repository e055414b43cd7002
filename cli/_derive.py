"""Derives a command from its verbs: their signatures and docstrings give the options, the defaults
and the help.

A command is a function of this folder. Its positional parameters are the command's arguments. Its
keyword parameters are options that only the shell has, or words or defaults that differ there;
``**options`` stands for all other options of the verbs. What it returns is what `--json` writes, or
an `Outcome`. A group may have one function, which is given the verb; then arguments and help are
the verb's. An entry "See `verb`." in a docstring stands for the words of that verb. Sources are
parsed, not imported, so that `c3 X --help` and a wrong option load neither torch nor pyarrow.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import re
import sys
import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup

import c3tools
from c3tools.choices import EXCLUSIONS, Range, declared_type
from c3tools.errors import C3Error
from c3tools.io.locations import is_url

from ._console import out, write_json
from ._options import NamedFile, option_settings, output_file

_EXPERT_PANEL = "Options for experts and clusters"
_METAVARS: Mapping[Any, str] = {
    int: "INT",
    float: "NUMBER",
    str: "TEXT",
    list[int]: "INT",
    list[float]: "NUMBER",
    list[str]: "TEXT",
}
# of commands without an option for it
_PAGES = {
    "ablate-captions": "{output}/table.html",
    "ablate-images": "{output}/table.html",
    "clusters": "{output}/clusters.html",
    "demo": "{output}/demo.html",
}
_ENTRY = re.compile(r"^    (\w+): (.*(?:\n        .*)*)", re.MULTILINE)
_REFERENCE = re.compile(r"See `(\w+)`\.")
_SECTION = re.compile(r"\n\n(?:Args|Returns|Raises|Yields):\n")
_FILE_NAME = re.compile(r"[\w./~][^\s:*]*\.[A-Za-z]{2,5}")
_REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class CommandSource:
    """The origin of a command.

    Attributes:
        module: of this folder, with the function.
        verbs: public functions, or methods ``Class.name``, whose parameters are its options.
        without: parameters of the verbs that are no options.
    """

    module: str
    verbs: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """The result of a command whose exit code may not be 0.

    Attributes:
        value: what `--json` writes; None if it is written already.
        code: the exit code.
    """

    value: Any
    code: int


@dataclass(frozen=True)
class _Parameter:
    """A parameter of a function, as its source says.

    Attributes:
        annotation: its source.
        default: `_REQUIRED` if a value is required.
        words: of its entry in the docstring.
        is_argument: of the command, not an option.
    """

    annotation: str
    default: Any
    words: str
    is_argument: bool


@dataclass(frozen=True)
class _Command:
    """A command that is to be added to the application.

    Attributes:
        name: the words after `c3`, such as "connect heads".
        source: where it comes from.
        function: the definition of its function.
        is_shared: whether that is the function of all commands of a group, which is given the verb.
        parameters: its arguments and options.
    """

    name: str
    source: CommandSource
    function: ast.FunctionDef
    is_shared: bool
    parameters: Mapping[str, _Parameter]

    @classmethod
    def read(cls, name: str, source: CommandSource) -> _Command:
        """Read the sources of a command."""
        function = _command_function(name, source.module)
        group = name.partition(" ")[0]
        is_shared = function.name == group != name
        parameters: dict[str, _Parameter] = {}
        for verb in source.verbs:
            for parameter_name, parameter in _parameters(_verb(verb)).items():
                if parameter_name not in source.without and parameter_name not in parameters:
                    # only a verb that is the command itself has arguments
                    is_argument = parameter.is_argument and is_shared
                    parameters[parameter_name] = replace(parameter, is_argument=is_argument)
        for parameter_name, parameter in _parameters(function).items():
            # without words of its own, it has those of the verb
            verb_words = parameters[parameter_name].words if parameter_name in parameters else ""
            words = parameter.words or verb_words
            parameters[parameter_name] = replace(parameter, words=words)
        return cls(name, source, function, is_shared, parameters)

    @property
    def page(self) -> str | None:
        """The page that `--open` shows, with the names of parameters in braces; None without."""
        if "html" in self.parameters:
            return "{html}"
        return _PAGES.get(self.name)

    @property
    def help(self) -> str:
        """The paragraphs of the docstring, each on one line."""
        described = _verb(self.source.verbs[0]) if self.is_shared else self.function
        text = _SECTION.split(ast.get_docstring(described) or "")[0]
        return "\n\n".join(_one_line(paragraph) for paragraph in text.split("\n\n"))

    def options(self) -> dict[str, _Parameter]:
        """Return the parameters with `--open` and `--json`: arguments first, `--json` last."""
        parameters = dict(self.parameters)
        if self.page:
            words = "Open the HTML page in the browser."
            parameters["open"] = _Parameter("bool", False, words, is_argument=False)
        words = "Print the result as JSON, or write it to PATH.json if a path follows."
        parameters["json"] = _Parameter("str | None", None, words, is_argument=False)

        def place(name: str) -> tuple[bool, bool]:
            return not parameters[name].is_argument, name == "json"

        return {name: parameters[name] for name in sorted(parameters, key=place)}

    def flags(self, name: str) -> list[str]:
        """Return how a parameter is typed: an option with dashes, an argument in capitals."""
        options = self.options()
        if name not in options:
            return [name]
        if options[name].is_argument:
            return [name.upper().removesuffix("S")]
        if flags := option_settings(self.name, name).flags:
            return list(flags)
        word = name.replace("_", "-")
        if len(word) == 1:
            return [f"-{word}"]
        return [f"--{word}/--no-{word}" if options[name].default is True else f"--{word}"]

    def run(self, **values: Any) -> None:
        """Run the command with the values of its parameters, and write and show its result."""
        # --json and --open, which the command's function may not have
        json = values["json"]
        if "json" not in self.parameters:
            del values["json"]
        shows_page = values.pop("open", False)
        if shows_page and "html" in values:
            values["html"] = values["html"] or output_file(f"{self.name}.html", ".html")
        out.quiet = json == "-"

        # Values that the parser of the command line lets pass, or leaves in pieces
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise C3Error(f"{self.flags(name)[0]} must be a finite number, not {value}.")
        if "other" in values:
            files: list[NamedFile] = values["other"] or []
            values["other"] = {file.name: file.path for file in files}

        _import_pyarrow()
        # Call the command's function; that of a group is given the verb
        module = importlib.import_module(f".{self.source.module}", __package__)
        function = getattr(module, self.function.name)
        if self.is_shared:
            function = partial(function, getattr(c3tools, self.source.verbs[0]))
        result = function(**values)

        # Show the result
        outcome = result if isinstance(result, Outcome) else Outcome(result, 0)
        if outcome.value is not None:
            write_json(outcome.value, json)
        if shows_page and self.page:
            address = self.page.format(**values)
            webbrowser.open(address if is_url(address) else Path(address).resolve().as_uri())
        if outcome.code:
            raise typer.Exit(outcome.code)


def derive(group: typer.Typer, name: str, source: CommandSource) -> None:
    """Add a command to ``group``: the application, or a group of commands in it.

    Args:
        group: to which it is added.
        name: The words after `c3`, such as "connect heads".
        source: Where it comes from.
    """
    command = _Command.read(name, source)
    options = command.options()
    signature = [
        inspect.Parameter(
            option,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=_annotate(command, option),
            default=parameter.default,
        )
        for option, parameter in options.items()
    ]

    def run(**values: Any) -> None:
        command.run(**values)

    run.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in signature}
    run.__doc__ = command.help
    checked = type("DerivedCommand", (_DerivedCommand,), {"derived": command})
    group.command(name.rsplit(maxsplit=1)[-1], cls=checked)(run)


class _PlainFlags(TyperCommand):
    """A command whose help shows no type for flags: `--strict`, not `--strict <bool>`."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters."""
        return _without_types_of_flags(super().get_params(ctx))


class PlainGroup(TyperGroup):
    """A group of commands whose help shows no type for flags."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters."""
        return _without_types_of_flags(super().get_params(ctx))


def _without_types_of_flags(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters


class _DerivedCommand(_PlainFlags):
    """A command whose `--json` takes an optional path that ends in .json, and which refuses options
    that have no effect.
    """

    derived: _Command

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line; refuse a second value for an option that has one."""
        arguments = [name for name, one in self.derived.parameters.items() if one.is_argument]
        takes_texts = bool({"text", "texts"} & set(arguments))
        rewritten = []
        for argument, following in zip_longest(args, args[1:], fillvalue=""):
            rewritten.append(argument)
            is_file_name = _FILE_NAME.fullmatch(following) and not following.endswith(".json")
            if argument == "--json" and takes_texts and is_file_name:
                ctx.fail(
                    f"--json writes to a path that ends in .json. Write --json={following} for "
                    f"this name, or put it before --json if it is a text."
                )
            if argument == "--json" and not following.endswith(".json"):
                # without a path, the result is printed
                rewritten += [] if following == "-" else ["-"]
        typed, unexpected, order = self.make_parser(ctx).parse_args(list(rewritten))
        if unexpected and not arguments and "store" in self.derived.parameters:
            ctx.fail(
                f"{unexpected[0]} is unexpected. To use this store, type: {ctx.command_path} "
                f"--store {unexpected[0]}"
            )
        json = typed.get("json")
        if json == "-" or self.derived.name != "caption":
            ctx.meta["json"] = json  # errors go there too, but not over captions saved so far
        single: Any = [o for o in order if not (o.multiple or getattr(o, "is_flag", False))]
        for option in single:
            if option.param_type_name == "option" and single.count(option) > 1:
                raise typer.BadParameter("this option takes one value, not several.", ctx, option)
        return super().parse_args(ctx, rewritten)

    def invoke(self, ctx: Any) -> Any:
        """Run the command if each option on the command line has an effect."""
        typed = [
            option.name
            for option in self.params
            if ctx.get_parameter_source(option.name).name == "COMMANDLINE"
        ]
        for name in typed:
            reason = self._without_effect(name, typed, ctx.params)
            if reason is not None:
                ctx.fail(f"{self.derived.flags(name)[0]} has no effect {reason}.")
        return super().invoke(ctx)

    def _without_effect(self, name: str, typed: list[str], values: Mapping[str, Any]) -> str | None:
        """Return why an option has no effect on a command line with these options, or None.

        Args:
            name: of the option.
            typed: options on the command line.
            values: of all options.
        """
        settings = option_settings(self.derived.name, name)
        if settings.needs and not set(settings.needs) & set(typed):
            *others, last = [self.derived.flags(other)[0] for other in settings.needs]
            return f"without {', '.join(others)} or {last}" if others else f"without {last}"
        excluding = {
            other
            for verb in self.derived.source.verbs
            for other in EXCLUSIONS.get(verb, {}).get(name, ())
        }
        for other in typed:
            is_alone = option_settings(self.derived.name, other).is_alone
            if other in excluding or (is_alone and name not in (other, "json")):
                return f"with {self.derived.flags(other)[0]}"
        return settings.unused(values) if settings.unused else None


def summary(name: str, source: CommandSource) -> str:
    """Return the first paragraph of the docstring of a command, as one line."""
    docstring = ast.get_docstring(_command_function(name, source.module)) or ""
    return _one_line(docstring.partition("\n\n")[0])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _import_pyarrow() -> None:
    """Import pyarrow without pandas: it imports it with the first array, half a second that no
    command needs.
    """

    def hide_pandas(name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)

    finder: Any = SimpleNamespace(find_spec=hide_pandas)
    sys.meta_path.insert(0, finder)
    try:
        import pyarrow

        pyarrow.array([])
    finally:
        sys.meta_path.remove(finder)


def _annotate(command: _Command, name: str) -> Any:
    """Return the type of an option, with what typer has to know about it."""
    parameter = command.options()[name]
    settings = option_settings(command.name, name)
    kind = _type(parameter.annotation)
    if settings.is_repeated:
        kind = list[str]
    elif settings.parse and get_origin(kind) is list:
        # the whole list is typed as one text, which is then parsed
        kind = str
    # A parameter in double backquotes becomes its flag: ``sigma`` is --sigma; other code loses them
    words = re.sub(r"``(\w+)``", lambda match: command.flags(match[1])[0], parameter.words)
    words = words.replace("``", "")
    if get_origin(kind) is list and not parameter.is_argument:
        words += " May be repeated."
    parse = settings.parse
    if get_origin(kind) is Annotated:
        kind, numbers = get_args(kind)
        parse = partial(_number, kind, numbers)
    metavar = settings.metavar
    if metavar is None and "Path" in parameter.annotation:  # the annotation is source text
        metavar = "PATH"
    elif metavar is None and parameter.is_argument:
        metavar = name.upper()
    elif metavar is None:
        metavar = _METAVARS.get(kind)
    # No default, an empty one, a flag that is off and 0, which equals False, are not shown
    has_default = parameter.default is not None and parameter.default is not _REQUIRED
    shared: dict[str, Any] = {
        "help": words,
        "metavar": metavar,
        "parser": parse,
        "autocompletion": settings.complete,
        "show_default": has_default and parameter.default not in (False, "", []),
    }
    if parameter.default == "c3-store":
        shared["envvar"] = "C3_STORE"
    if settings.is_expert:
        shared["rich_help_panel"] = _EXPERT_PANEL
    if parameter.is_argument:
        return Annotated[kind, typer.Argument(**shared)]
    return Annotated[kind, typer.Option(*command.flags(name), **shared)]


def _number(kind: type[int] | type[float], numbers: Range, text: str) -> float:
    """Parse a number that has to be in a range, which typer would also print in the help.

    Raises:
        BadParameter: if it is none, or outside of the range.
    """
    try:
        value = kind(text)
    except ValueError:
        word = "whole number" if kind is int else "number"
        raise typer.BadParameter(f"{text!r} is not a {word}.") from None
    if value not in numbers:
        raise typer.BadParameter(f"{text} is not {numbers}.")
    return value


def _type(annotation: str) -> Any:
    """Return the type that typer reads for an annotation; None if no text stands for such a
    value.
    """
    words = re.findall(r"\w+", annotation)
    kind: Any = None
    if declared := declared_type(annotation):
        return declared
    if {"str", "Path"} & set(words):
        kind = str
    elif "float" in words:
        kind = float
    elif "int" in words:
        kind = int
    elif "bool" in words:
        kind = bool
    if kind and words[0] in ("list", "Sequence"):
        return list[kind]
    return kind


def _parameters(function: ast.FunctionDef) -> dict[str, _Parameter]:
    """Return the parameters of a function that a text can stand for, with their words in its
    docstring.
    """
    docstring = ast.get_docstring(function) or ""
    entries = docstring.partition("\nArgs:\n")[2].partition("\n\n")[0]
    words = {name: _one_line(text) for name, text in _ENTRY.findall(entries)}
    positional = function.args.args
    required = [None] * (len(positional) - len(function.args.defaults))
    parameters = {}
    for argument, default in zip(
        [*positional, *function.args.kwonlyargs],
        [*required, *function.args.defaults, *function.args.kw_defaults],
        strict=True,
    ):
        annotation = ast.unparse(argument.annotation) if argument.annotation else ""
        if argument.arg == "self" or not _type(annotation):
            continue
        entry = words.get(argument.arg, "")
        if reference := _REFERENCE.fullmatch(entry):
            entry = _parameters(_verb(reference[1]))[argument.arg].words
        value = _REQUIRED if default is None else ast.literal_eval(default)
        if isinstance(value, tuple):
            value = list(value)
        parameters[argument.arg] = _Parameter(
            annotation, value, entry, is_argument=argument in positional
        )
    return parameters


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


def _command_function(name: str, module: str) -> ast.FunctionDef:
    """Return the definition of the function of this folder that is a command (``import_`` of
    import), or its group.
    """
    source = _parse(Path(__file__).with_name(f"{module}.py"))
    functions = {
        node.name.removesuffix("_"): node
        for node in source.body
        if isinstance(node, ast.FunctionDef)
    }
    words = name.replace("-", "_").split()
    return next(functions[word] for word in reversed(words) if word in functions)


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
