"""The Typer application: finds the commands and turns expected errors into exit codes."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from types import FrameType
from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from ._console import err
from ._derive import derive, summary

COMMANDS = {  # the function of this folder, the verbs whose parameters are its options, and those it does not have
    "embed": ("stores.embed", "embed"),
    "import": ("stores.import_", "import_embeddings"),
    "connect heads": ("connect.heads", "connect_heads read_features"),
    "connect apply": ("connect.apply", "apply_heads read_features"),
    "connect lit": ("connect.lit", "connect_towers", "mode augment"),
    "connect full": ("connect.full", "connect_towers", "mode image_head"),
    "means": ("stores.means", "save_means load_means merge_means"),
    "gap-report": ("geometry.gap_report", "gap_report"),
    "export": ("search.export", "export_store"),
    "train-decoder": ("captions.train_decoder", "train_captioner"),
    "caption": ("captions.caption", "caption_images"),
    "train-generator": ("images.train_generator", "train_generator"),
    "generate": ("images.generate", "generate"),
    "evaluate": ("captions.evaluate", "evaluate_captions evaluate_images"),
    "ablate": ("captions.ablate", "ablate"),
    "index": ("search.index", "build_index"),
    "search": ("search.search", "Index.search"),
    "verify": ("stores.verify", "verify_store"),
    "merge": ("stores.merge", "merge_stores"),
    "split": ("stores.split", "split_store"),
    "push": ("hub.push", ""),
    "pull": ("hub.pull", ""),
    "demo": ("captions.demo", "run_demo"),
    "models": ("machine.models", "list_models"),
    "info": ("machine.info", ""),
    "simulate init-gap": ("geometry.init_gap", "simulate_init_gap"),
    "simulate depth": ("geometry.depth", "simulate_depth"),
    "simulate gap-after-training": ("geometry.gap_after_training", "simulate_gap_after_training"),
    "simulate stable-region": ("geometry.stable_region", "simulate_stable_region"),
    "simulate temperature": ("geometry.temperature", "simulate_temperature"),
}
GROUPS = {
    "connect": "Train heads or towers on pairs with a contrastive loss, and log the geometry.",
    "simulate": "Simulate the theory of the modality gap.",
}
_NAMES = list(dict.fromkeys(name.split()[0] for name in COMMANDS))
_PANELS = {"simulate": "Theory"}


class _TerminatedError(KeyboardInterrupt):
    """Raised on SIGTERM, which ends a command in the same way as Ctrl-C."""


@cache
def _build(name: str) -> Any:
    """Return a command, or a group of commands, with its options."""
    grouped = name in GROUPS
    own = typer.Typer(add_completion=False, no_args_is_help=grouped, help=GROUPS.get(name))
    for words, derivation in COMMANDS.items():
        if words.split()[0] == name:
            derive(own, words, *derivation)
    command = typer.main.get_command(own)
    command.name = name
    return command


class _Commands(Mapping[str, Any]):
    """The commands by name. Each is built when it is asked for, since building all of them delays every start."""

    def __getitem__(self, name: str) -> Any:
        if name not in _NAMES:
            raise KeyError(name)
        return _build(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_NAMES)

    def __len__(self) -> int:
        return len(_NAMES)


class FriendlyGroup(TyperGroup):
    """Lists commands in the order of the workflow; prints expected errors as one message, with exit code 1."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        commands: Any = _Commands()
        self.commands = commands

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands in the order of the workflow."""
        return list(self.commands)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """List the commands by their summaries alone, which is faster than building their options."""
        self.commands = {
            name: TyperCommand(
                name,
                help=GROUPS.get(name) or summary(COMMANDS[name][0]),
                rich_help_panel=_PANELS.get(name),
            )
            for name in _NAMES
        }
        super().format_help(ctx, formatter)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; print expected errors without a traceback."""
        from c3tools.errors import C3Error

        try:
            return super().invoke(ctx)
        except C3Error as error:
            err.print(f"[bold red]Error:[/] {escape(error.message)}")
            if error.remedy:
                err.print(escape(error.remedy))
            raise typer.Exit(1) from error
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            err.print(f"[bold red]Error:[/] {escape(str(error))}")
            err.print("Check the path, its permissions and the free disk space, then run the same command again.")
            raise typer.Exit(1) from error
        except MemoryError as error:
            err.print("[bold red]Error:[/] There is not enough memory for this.")
            err.print("What was finished is kept. Give smaller files, or use a machine with more memory.")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interrupt:
            kept = getattr(interrupt, "__notes__", ["No output of this run was kept."])
            terminated = isinstance(interrupt, _TerminatedError)
            err.print(escape(" ".join(["Terminated." if terminated else "Interrupted.", *kept])))
            raise typer.Exit(128 + (signal.SIGTERM if terminated else signal.SIGINT)) from None


def _show_version(value: bool) -> None:
    if value:
        from c3tools import __version__

        typer.echo(f"c3tools {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=FriendlyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Close the gap between image and text embeddings: train on one modality, use on the other.",
)


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
) -> None:
    pass


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _TerminatedError


def _leave_termination_to_the_system() -> None:
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def main() -> None:
    """Entry point of the console script."""
    signal.signal(signal.SIGTERM, _terminate)
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=_leave_termination_to_the_system)  # workers end without a message
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a character that the terminal cannot show is no reason to stop
    app(prog_name="c3")
