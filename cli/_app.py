"""The Typer application: finds the commands and turns expected errors into exit codes."""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import suppress
from functools import cache
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand

from ._console import err, message, write_json
from ._derive import CommandSource, PlainGroup, derive, summary
from ._options import output_file

# in the order of `c3 --help`
PANELS = {
    "Get started": {
        "demo": CommandSource("captions", ("run_demo",)),
        "info": CommandSource("machine"),
        "models": CommandSource("machine", ("list_models",)),
    },
    "Build a store": {
        "embed": CommandSource("stores", ("embed",)),
        "import": CommandSource("stores", ("import_embeddings",)),
        "merge": CommandSource("stores", ("merge_stores",)),
        "split": CommandSource("stores", ("split_store",)),
        "verify": CommandSource("stores", ("verify_store",)),
        "means show": CommandSource("means", ("compute_means",)),
        "means save": CommandSource("means", ("save_means",)),
        "means load": CommandSource("means", ("load_means",)),
        "means unload": CommandSource("means", ("unload_means",)),
    },
    "Check your data": {
        "gap-report": CommandSource("geometry", ("gap_report",)),
        "clusters": CommandSource("geometry", ("cluster",)),
        "pairs": CommandSource("curation", ("check_pairs",)),
        "duplicates": CommandSource("curation", ("find_duplicates",)),
        "leave-out": CommandSource("stores", ("leave_out",)),
    },
    "Search": {
        "index": CommandSource("search", ("build_index",)),
        "search": CommandSource("search", ("Index.search",)),
        "serve": CommandSource("search", ("serve_index",)),
    },
    "Export and share": {
        "export": CommandSource("search", ("export_store",)),
        "push": CommandSource("hub"),
        "pull": CommandSource("hub"),
    },
    "Caption images": {
        "train-decoder": CommandSource("captions", ("train_captioner",)),
        "caption": CommandSource("captions", ("caption_images",)),
        "evaluate-captions": CommandSource(
            "captions", ("evaluate_captions",), without=("pipeline", "without", "encoder")
        ),
        "ablate-captions": CommandSource("captions", ("ablate_captions",)),
    },
    "Generate images": {
        "train-generator": CommandSource("images", ("train_generator",)),
        "generate": CommandSource("images", ("generate",)),
        "evaluate-images": CommandSource("images", ("evaluate_images",)),
        "ablate-images": CommandSource("images", ("ablate_images",)),
    },
    "Research": {
        "connect heads": CommandSource("connect", ("read_features", "connect_heads")),
        "connect apply": CommandSource("connect", ("read_features", "apply_heads")),
        "connect lit": CommandSource("connect", ("connect_towers",), without=("mode", "augment")),
        "connect full": CommandSource("connect", ("connect_towers",), without=("mode",)),
        "simulate init-gap": CommandSource("geometry", ("simulate_init_gap",)),
        "simulate depth": CommandSource("geometry", ("simulate_depth",)),
        "simulate gap-after-training": CommandSource("geometry", ("simulate_gap_after_training",)),
        "simulate stable-region": CommandSource("geometry", ("simulate_stable_region",)),
        "simulate temperature": CommandSource("geometry", ("simulate_temperature",)),
    },
}
COMMANDS = {name: source for commands in PANELS.values() for name, source in commands.items()}
_GROUPS = {
    "means": "Show, save or load the means of a store.",
    "connect": "Train heads or towers with a contrastive loss.",
    "simulate": "Run the simulations from the theory of the modality gap.",
}


@cache
def _build(name: str) -> Any:
    """Return a command, or a group of commands, with its options."""
    group = typer.Typer(
        cls=PlainGroup,
        add_completion=False,
        no_args_is_help=name in _GROUPS,
        help=_GROUPS.get(name),
    )
    for words, source in COMMANDS.items():
        if words.split()[0] == name:
            derive(group, words, source)
    command = typer.main.get_command(group)
    command.name = name
    return command


class _Group(PlainGroup):
    """Lists commands by panels; prints expected errors as one message, with exit code 1."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: dict[str, Any] = dict.fromkeys(words.split()[0] for words in COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; it is built when it is asked for, since building all of them delays
        every start.
        """
        return (self.commands[cmd_name] or _build(cmd_name)) if cmd_name in self.commands else None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """List the commands by their summaries alone, without building them."""
        for panel, commands in PANELS.items():
            for words, source in commands.items():
                name = words.split()[0]
                said = _GROUPS.get(name) or summary(name, source)
                self.commands[name] = TyperCommand(name, help=said, rich_help_panel=panel)
        super().format_help(ctx, formatter)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; print expected errors without a traceback, and as JSON too where
        `--json` writes.
        """
        from c3tools.errors import (
            OUT_OF_MEMORY,
            C3Error,
            UnusedOptionError,
            explain_missing,
            is_out_of_memory,
            remedy_of,
        )

        try:
            with explain_missing("This command"):
                return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                remedy = (
                    "Free some memory or use a machine with more, then run the same command again."
                )
                _fail(ctx, error, OUT_OF_MEMORY, remedy)
            if isinstance(error, C3Error):
                code = 2 if isinstance(error, UnusedOptionError) else 1
                _fail(ctx, error, error.message, error.remedy, code)
            if isinstance(error, OSError):
                _fail(ctx, error, str(error), remedy_of(error))
            raise
        except KeyboardInterrupt as interrupt:
            kept = getattr(interrupt, "__notes__", ["No output of this run was kept."])
            message(" ".join([*(interrupt.args or ["Interrupted."]), *kept]))
            raise typer.Exit(128 + (signal.SIGTERM if interrupt.args else signal.SIGINT)) from None


def _fail(ctx: Any, error: BaseException, text: str, remedy: str | None, code: int = 1) -> NoReturn:
    from c3tools.errors import C3Error

    err.print("Error:", style="bold red", end=" ")
    message(text)
    if remedy:
        message(remedy)
    destination = ctx.meta.get("json")
    with suppress(C3Error, OSError):  # if the file cannot be written either
        if destination not in (None, "-"):
            output_file(destination, ".json")
        write_json({"error": text, "remedy": remedy}, destination)
    raise typer.Exit(code) from error


def _show_version(value: bool) -> None:
    if value:
        from c3tools import __version__

        typer.echo(f"c3tools {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Take the modality gap out of CLIP-like embeddings, so that images and texts can be "
    "searched, clustered, cleaned and trained on as one kind of vector.",
    epilog="New here? c3 demo",
)


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, help="Show the version."
    ),
) -> None:
    pass


class _Output(io.TextIOWrapper):
    """Standard output that drops what follows once its reader, such as head, has gone."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())


def main() -> None:
    """Entry point of the console script."""

    def interrupt(number: int, _: object) -> None:
        # What follows is quick, and is not interrupted again
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if number == signal.SIGTERM:
            raise KeyboardInterrupt("Terminated.")
        raise KeyboardInterrupt

    def end_without_message() -> None:
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in the background of a shell
        signal.signal(signal.SIGINT, interrupt)
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=end_without_message)  # in workers
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a character that the terminal cannot show is no reason to stop
            stream.reconfigure(errors="replace")
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout is sys.__stdout__:
        encoding, lines = sys.stdout.encoding, sys.stdout.line_buffering
        sys.stdout = _Output(sys.stdout.detach(), encoding, "replace", line_buffering=lines)
    app(prog_name="c3")
