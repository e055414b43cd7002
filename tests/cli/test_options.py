"""Every option and argument of every command has an effect.

The commands and their parameters come from the application. Each option (in `make test` every
third one of each command) is given alone, with a value of `CASES`: then the result differs from
that without it, or the option is refused with exit code 2 and its name. `ELSEWHERE` lists the
options that change where, how fast, or what is shown.

Results are the numbers, words and files that a command makes, without its settings: a value that is
only recorded is no effect.
"""

from __future__ import annotations

import inspect
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from c3tools.cli._app import COMMANDS, app
from c3tools.cli.stores import NOT_WHOLE
from safetensors.numpy import load_file
from typer.testing import CliRunner, Result

import c3tools
from c3tools import Store
from c3tools.captioning import config as decoder_sizes
from c3tools.choices import declared_type
from c3tools.encoders import Encoder
from c3tools.errors import InvalidOptionError
from tests.conftest import C3, copy_photos, done, slice_of, unit_rows, write_jsonl

from ..connect.photos import save_tiny_clip
from ..paper.imaging.conftest import MICRO_SIZE, mini_store
from ..test_choices import CHOSEN, excluded_options, wrong_values
from .option_cases import (
    ARGUMENTS,
    CASES,
    ELSEWHERE,
    GENERATE,
    HEADS,
    IN_LONG_CHECKS,
    LINES,
    MANY,
    OF_OTHER_INPUTS,
    TESTED_BY,
    TRAIN,
    TRAIN_GENERATOR,
    Case,
    embed,
)

ROOT = Path(__file__).parents[2]
Run = Callable[[str], tuple[Result, dict[str, Any]]]  # the fixture `run`


def case_of(command: str, name: str) -> Case | None:
    """Return the case of an option: of the command, of its group, or of all commands."""
    group = command.partition(" ")[0]
    keys = (f"{command} {name}", f"{group} {name}", name)
    return next((CASES[key] for key in keys if key in CASES), None)


def is_tried(command: str, name: str) -> bool:
    """Return whether the effect of a parameter is tried here: not where it changes no result, or a
    test of another file shows it.
    """
    return not {name, f"{command} {name}"} & {*ELSEWHERE, *TESTED_BY}


def parameters_of(command: str) -> list[Any]:
    """Return the options and arguments of a command, as the shell has them."""
    node: Any = typer.main.get_command(app)
    for word in command.split():
        node = node.get_command(None, word)
    return list(node.params)


def options_of(command: str) -> list[Any]:
    """Return the options of a command that are tried here."""
    return [
        parameter
        for parameter in parameters_of(command)
        if parameter.param_type_name == "option" and is_tried(command, parameter.name)
    ]


def flag_of(option: Any) -> str:
    """Return how an option is typed; one that is on by default as what turns it off."""
    if option.secondary_opts and option.default:
        return str(option.secondary_opts[0])
    return str(option.opts[0])


def with_option(line: str, option: Any, value: str) -> str:
    """Return a command line with a value of an option, in place of the value that it has there."""
    words = line.split()
    typed = [flag for flag in option.opts if flag in words]
    if typed:
        words[words.index(typed[0]) + 1] = value
        return " ".join(words)
    return f"{line} {flag_of(option)} {value}".rstrip()


def line_of(command: str) -> str:
    """Return the command line that options are added to."""
    return LINES.get(command, command)


def evidence(result: Result, folder: Path, before: Path) -> dict[str, Any]:
    """Return what a command made: the exit code, the numbers and words of its JSON, and the content
    of files that are new or changed. Settings that are only recorded are left out, and so are names
    of files, which can be digests of settings.
    """
    printed = None
    if result.stdout.lstrip().startswith(("{", "[")):
        printed = results_of(json.loads(result.stdout))
    contents = []
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if not file.is_file() or any(part.startswith(".") for part in name.parts):
            continue
        original = before / name
        if original.is_file() and original.stat().st_mtime_ns == file.stat().st_mtime_ns:
            continue
        match file.suffix:
            case ".parquet":
                rows = pq.read_table(file).replace_schema_metadata()
                contents.append(str(rows.schema) + str(rows.to_pydict()))
            case ".safetensors":
                contents.append(str({key: x.tobytes() for key, x in load_file(file).items()}))
            case ".html":
                contents.append(str(re.findall(r"<svg.*?</svg>", file.read_text(), re.DOTALL)))
            case ".json":
                contents.append(str(results_of(json.loads(file.read_text()))))
            case ".npy" | ".png" | ".txt" | ".xmp" | ".faiss":
                contents.append(str(file.read_bytes()))
    return {"code": result.exit_code, "printed": printed, "files": sorted(contents)}


def results_of(value: Any) -> Any:
    """Return JSON without settings, which are keys that are called like an option, and times."""
    if isinstance(value, dict):
        kept = {key: results_of(part) for key, part in value.items() if key not in SETTINGS}
        return {key: part for key, part in kept.items() if part not in ({}, None)}
    if isinstance(value, list):
        return [results_of(part) for part in value]
    return value


SETTINGS = {parameter.name for command in COMMANDS for parameter in parameters_of(command)}
SETTINGS -= {"captions", "images", "texts", "pairs", "modality", "split"}
SETTINGS |= {
    "settings",
    "seconds",
    "checksum",
    "training_seconds",
    "made_from",
    "command",
    "provenance",
}
SETTINGS |= {"fingerprint", "digest", "changes", "notes", "tokens", "elapsed", "timings", "rate"}


@pytest.fixture
def run(options_workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs a command line in a fresh copy of the workplace, and returns its
    result and evidence.
    """
    # Stores and results contain paths, so every run is where the workplace was made
    folder = options_workplace.with_name("workplace")
    micro_sizes(monkeypatch)

    def run_in_copy(line: str) -> tuple[Result, dict[str, Any]]:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(options_workplace, folder, symlinks=True)
        monkeypatch.chdir(folder)
        result = CliRunner().invoke(app, [*shlex.split(line), "--json"], prog_name="c3")
        return result, evidence(result, folder, options_workplace)

    return run_in_copy


def without_effect(command: str, run: Run, options: Iterable[Any] | None = None) -> list[str]:
    """Return the options of a command, or those of them that are given, that neither change its
    result nor are refused.
    """
    plain: dict[str, dict[str, Any]] = {}
    ignored = []
    for option in options_of(command) if options is None else options:
        case = case_of(command, option.name)
        assert case is not None, option.name
        without = case.line or line_of(command)
        if without not in plain:
            result, plain[without] = run(without)
            if len(plain) == 1:
                _, again = run(without)
                assert again == plain[without], f"{without} gives two results"
            if result.exit_code not in (0, NOT_WHOLE):
                ignored.append(f"{option.name}: {without} ends with an error: {result.output}")
        line = with_option(without, option, case.value)
        result, made = run(line)
        if result.exit_code == 2 and f"{flag_of(option)} has no effect" in result.stderr:
            continue
        if result.exit_code not in (0, NOT_WHOLE):
            problem = " ".join(result.output.split())[-250:]
            ignored.append(f"{option.name}: {line} ends with an error: {problem}")
        elif made == plain[without]:
            ignored.append(f"{option.name}: {line}")
    return ignored


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_case_or_a_reason(command: str) -> None:
    missing = [
        parameter.name
        for parameter in parameters_of(command)
        if is_tried(command, parameter.name)
        and case_of(command, parameter.name) is None
        and f"{command} {parameter.name}" not in ARGUMENTS
    ]
    assert missing == []


TRIED = [command for command in COMMANDS if options_of(command) and command not in IN_LONG_CHECKS]


@pytest.mark.parametrize("command", TRIED)
def test_every_option_has_an_effect(run: Run, command: str) -> None:
    assert without_effect(command, run, slice_of(options_of(command))) == []


@pytest.mark.parametrize("option", OF_OTHER_INPUTS)
def test_an_option_of_other_inputs_is_refused(run: Run, option: str) -> None:
    result, made = run(OF_OTHER_INPUTS[option])
    assert result.exit_code == 2
    assert f"{option} has no effect because" in result.stderr
    assert made["files"] == []


@pytest.mark.parametrize("name", ARGUMENTS)
def test_another_argument_gives_another_result(run: Run, name: str) -> None:
    argument = ARGUMENTS[name]
    line = line_with(name, argument.value)
    other = line_with(name, argument.other)
    results = [run(each) for each in (line, other)]
    for result, _ in results:
        assert result.exit_code in (0, NOT_WHOLE), result.output
    assert results[0][1] != results[1][1]


@pytest.mark.parametrize("name", [name for name in ARGUMENTS if ARGUMENTS[name].wrong])
def test_a_wrong_argument_is_refused(run: Run, name: str) -> None:
    result, made = run(line_with(name, str(ARGUMENTS[name].wrong)))
    assert result.exit_code in (1, 2)
    assert str(ARGUMENTS[name].wrong) in result.stderr
    assert made["files"] == []


def limited_options() -> Iterator[tuple[str, str, str, Any]]:
    """Yield options that have a range or choices: command, public function, name and type."""
    for command, source in COMMANDS.items():
        for verb in source.verbs:
            for name, annotation in inspect.get_annotations(attrgetter(verb)(c3tools)).items():
                declared = declared_type(annotation)
                if declared and name not in source.without:
                    yield command, verb, name, declared


@pytest.mark.parametrize(("command", "verb", "name", "declared"), list(limited_options()))
def test_the_shell_and_python_refuse_the_same_values(
    c3: C3, command: str, verb: str, name: str, declared: Any
) -> None:
    option = next(each for each in parameters_of(command) if each.name == name)
    for wrong in wrong_values(declared):
        result = c3(*command.split(), flag_of(option), str(wrong))
        assert result.exit_code == 2 and f"Invalid value for '{option.opts[0]}" in result.output
        with pytest.raises(InvalidOptionError, match=rf"^{name} must be .+, not {wrong!r}\.$"):
            attrgetter(verb)(c3tools)(**{name: wrong})


def excluded_on_the_command_line() -> Iterator[tuple[str, Any, Any]]:
    """Yield options that have no effect with another: command, option, and the other."""
    for command, source in COMMANDS.items():
        parameters = parameters_of(command)
        options = {each.name: each for each in parameters if each.param_type_name == "option"}
        for verb, name, other in excluded_options():
            if verb in source.verbs and {name, other} <= options.keys():
                yield command, options[name], options[other]


@pytest.mark.parametrize(("command", "option", "other"), list(excluded_on_the_command_line()))
def test_options_that_have_no_effect_with_others_are_refused(
    c3: C3, command: str, option: Any, other: Any
) -> None:
    words = ["--output", "new"] if command == "split" else []  # which is required there
    for each in (option, other):
        words.append(flag_of(each))
        words += [] if each.is_flag else [CHOSEN.get(each.name, "1")]
    if (command, option.name) == ("import", "text_meta"):
        words += ["--text", "1"]  # without which it has no effect either
    result = c3(*command.split(), *words)
    assert result.exit_code == 2
    assert f"{flag_of(option)} has no effect with {flag_of(other)}." in result.stderr


REQUIRED = [
    (command, parameter.name)
    for command in COMMANDS
    for parameter in parameters_of(command)
    if parameter.param_type_name == "argument" and parameter.required
]


@pytest.mark.parametrize(("command", "name"), REQUIRED)
def test_a_missing_argument_is_refused(c3: C3, command: str, name: str) -> None:
    result = c3(*command.split())
    assert result.exit_code == 2
    assert "Missing argument" in result.stderr


def line_with(name: str, value: str) -> str:
    """Return the command line of a command with a value of its argument, named by command and
    argument.
    """
    command = name.rpartition(" ")[0]
    argument = ARGUMENTS[name]
    words = (argument.line or line_of(command)).split()
    if argument.value:
        words[words.index(argument.value)] = value
    else:
        words.append(value)
    return " ".join(words).rstrip()


def test_an_ignored_option_is_noticed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    split_store = c3tools.split_store
    monkeypatch.setattr(
        c3tools, "split_store", lambda **options: split_store(**{**options, "seed": 0})
    )
    assert without_effect("split", run) == ["seed: split -o new --seed 3"]


def test_the_lists_name_parameters_that_exist() -> None:
    names = {
        key
        for command in COMMANDS
        for parameter in parameters_of(command)
        for key in (
            parameter.name,
            f"{command} {parameter.name}",
            f"{command.partition(' ')[0]} {parameter.name}",
        )
    }
    assert {*ELSEWHERE, *CASES, *TESTED_BY, *ARGUMENTS} - names == set()


@pytest.mark.parametrize("test", sorted(set(TESTED_BY.values())))
def test_the_tests_that_show_an_effect_exist(test: str) -> None:
    file, _, function = test.partition("::")
    assert f"def {function}(" in (ROOT / file).read_text(encoding="utf-8")


def micro_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trainings of decoders and generators take a moment."""
    sizes = dict(decoder_sizes.SIZES)
    for number, name in enumerate(("tiny", "small"), 1):
        size: Any = sizes[name]
        sizes[name] = replace(
            size, width=16 * number, layers=1, heads=1, prefix_length=1, vocab_size=64
        )
    monkeypatch.setattr(decoder_sizes, "SIZES", MappingProxyType(sizes))
    small = replace(MICRO_SIZE, channels=(16, 32))
    monkeypatch.setattr("c3tools.paper.imaging.model.SIZES", {"tiny": MICRO_SIZE, "small": small})
    monkeypatch.setattr("c3tools.paper.ablation.image_table.SAMPLING_STEPS", 1)


@pytest.fixture(scope="session")
def options_workplace(
    made_workplace: Path, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The workplace of the other tests, with what the cases need beside; it was made in the folder
    "workplace" beside it.
    """
    folder = tmp_path_factory.mktemp("options") / "workplace"
    shutil.copytree(made_workplace, folder)
    for unused in ("empty", "mine", "cut.npy", "broken.jsonl"):
        path = folder / unused
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        micro_sizes(patch)
        run = CliRunner()

        def c3(line: str) -> None:
            done(run.invoke(app, shlex.split(line), prog_name="c3"))

        # Photos with captions, links, and another model
        copy_photos(folder / "few", 2)
        copy_photos(folder / "more", 12)
        (folder / "linked").mkdir()
        shutil.copy(next((folder / "photos").glob("*.jpg")), folder / "linked")
        outside = sorted((folder / "few").glob("*.jpg"))[1]
        (folder / "linked" / "link.jpg").symlink_to(outside)
        mini_store(folder / "photos-store", encoder, photos=12)
        save_tiny_clip(folder / "other-tiny", layers=2)
        # Tables
        names = [f"row {number}" for number in range(6)]
        folds = ["train", "val", "train", "train", "val", "train"]
        rows = [
            {"id": f"{n}", "name": name, "fold": fold, "key": f"image0{n}", "of": f"{n}"}
            for n, (name, fold) in enumerate(zip(names, folds, strict=True))
        ]
        write_jsonl(Path("named.jsonl"), *rows)
        splits = [{"key": "image01", "name": "image02", "split": "val", "fold": "train"}]
        write_jsonl(Path("two-splits.jsonl"), *splits)
        of_texts = [{"id": f"t{n}", "image_key": f"{5 - n}", "of": f"{n}"} for n in range(6)]
        write_jsonl(Path("texts-of.jsonl"), *of_texts)
        photos = sorted(path.name for path in Path("photos").glob("*.jpg"))
        renamed = [
            {"image": name, "captions": [f"photo {number}"], "split": folds[number % 6]}
            for number, name in enumerate(photos)
        ]
        write_jsonl(Path("mine.jsonl"), *renamed)
        drawn = [
            {"image": f"{n}.jpg", "captions": [f"thing {n}"], "split": folds[n]} for n in range(4)
        ]
        write_jsonl(Path("split-captions.jsonl"), *drawn)
        Path("table.csv").write_text(
            "caption,other,name,image,second\n"
            f"a dog,a cat,n1,photos/{photos[0]},photos/{photos[1]}\n"
        )
        Path("paths.csv").write_text(f"image,caption\n{photos[0]},a dog\n")
        shutil.copy(folder / "photos" / photos[1], photos[0])
        test_keys = Store.open("c3-store").load("image", "test").keys
        references = [{"key": key, "captions": ["a red dog"]} for key in test_keys]
        write_jsonl(Path("references.jsonl"), *references)
        text_keys = Store.open("c3-store").load("text", "test").keys
        references_of_texts = [{"key": key, "captions": ["a red dog"]} for key in text_keys]
        write_jsonl(Path("references-of-all.jsonl"), *references, *references_of_texts)
        captions = [{"key": key, "caption": "a red dog on the beach"} for key in test_keys]
        Path("captions.json").write_text(json.dumps(captions))
        text_rows = Store.open("other").load("text").embeddings
        arrays = {
            "one": text_rows[:1],
            "second": text_rows[1:2],
            "longer": 3 * np.load("i.npy"),
            "other": np.load("far.npy")[::-1, ::-1],
            "many": unit_rows(60, 32),
            "many2": unit_rows(60, 32, 1),
            "many3": unit_rows(60, 32, 2),
            "ten": unit_rows(2, encoder.dim),
            "eleven": unit_rows(2, encoder.dim, 1),
        }
        for name, array in arrays.items():
            np.save(f"{name}.npy", array)
        np.savez("arrays.npz", a=arrays["longer"], b=-arrays["longer"])
        np.savez("many.npz", a=arrays["many"], b=arrays["many2"])
        of_many = [
            {"id": f"{n}", "split": folds[n % 6], "kind": "photo" if n < 30 else "drawing"}
            for n in range(60)
        ]
        write_jsonl(Path("ids-of-many.jsonl"), *of_many)
        texts_of_many = [{"id": f"t{n}", "image_key": f"{59 - n}"} for n in range(60)]
        write_jsonl(Path("texts-of-many.jsonl"), *texts_of_many)
        # Stores that are damaged or incomplete
        for name in ("damaged", "incomplete"):
            shutil.copytree("texts", name)
        part = next(Path("damaged/text").glob("*.parquet"))
        part.write_bytes(b"cut")
        next(Path("incomplete/text").glob("*.parquet")).unlink()
        # A store of photos of which one was changed since, one removed, and one failed at first
        copy_photos(folder / "album", 4)
        kept, changed, removed, failed = sorted((folder / "album").glob("*.jpg"))
        content = failed.read_bytes()
        failed.write_bytes(b"cut")
        c3(embed("album").replace("--store s", "--store album-store"))
        failed.write_bytes(content)
        changed.write_bytes(kept.read_bytes())
        removed.unlink()
        # A store that was updated after it was exported
        shutil.copytree("album-store", "updated-store")
        c3("export --store updated-store --workers 1 --sigma 0.1 -o export")
        c3(embed("album").replace("--store s", "--store updated-store --update"))
        # Results that are read again
        c3(f"{MANY} three")
        c3(f"{MANY} kinds --meta ids-of-many.jsonl --keep-columns kind")
        c3("means save m2.safetensors --store other")
        c3("means save two.safetensors --split all")
        c3(HEADS.replace("new", "c3-heads"))
        c3(f"{HEADS.replace('new', 'other-heads')} --seed 1")
        c3("index --factory IVF16,Flat -o ivf")
        c3("index --modality text -o texts-index")
        c3("index --store photos-store -o mini-index")
        c3(TRAIN.replace("new", "decoder2"))
        c3(embed("photos").replace("--store s", "--store tiny-store"))
        unconditional = TRAIN.replace("--sigma 0.1", "--unconditional")
        c3(f"{unconditional.replace('new', 'language-model')} --store tiny-store")
        c3(TRAIN_GENERATOR.replace("new", "c3-generator"))
        c3(f"{TRAIN_GENERATOR.replace('new', 'generator2')} --seed 1")
        c3(f"{GENERATE} --embeddings ten.npy -n 3")
        c3(f"{GENERATE} --embeddings ten.npy -n 3 --seed 5 -o images2")
    return folder.rename(folder.with_name("original"))
