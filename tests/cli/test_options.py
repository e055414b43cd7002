"""Every option of every command has an effect.

The commands and their options come from the application. Each option is given alone, with a value
of `CASES`: then the result differs from that without it, or the option is refused with exit code 2
and its name. `ELSEWHERE` lists the options that change where, how fast, or what is shown.

Results are the numbers, words and files that a command makes, without its settings: a value that is
only recorded is no effect.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
from c3tools.encoders import Encoder
from tests.conftest import copy_photos, done, unit_rows, write_jsonl

from ..imaging.conftest import MICRO_SIZE, mini_store

ELSEWHERE = {
    "json": "where the result is written",
    "output": "where the result is written",
    "out": "where the result is written",
    "open": "shown: the page in the browser",
    "full": "shown: every table",
    "html": "shown: a page",
    "figure": "shown: a drawing",
    "figures": "shown: drawings",
    "overwrite": "which results may be replaced",
    "strict": "the exit code",
    "device": "how fast: where numbers are computed",
    "backend": "how fast: the library of the encoder",
    "precision": "how fast: the number format of computations",
    "workers": "how fast: processes that decode or write",
    "batch_size": "how fast: rows that are computed at a time, but in trainings",
    "chunk": "how fast: pairs that are embedded at a time",
    "jobs": "how fast: trainings at a time",
    "executor": "where work runs",
    "address": "where work runs",
    "processes": "how fast: processes of the cluster",
    "image_timeout": "how long an image may take",
    "download": "whether URLs are read, which needs the network",
    "host": "where the page is served",
    "port": "where the page is served",
    "fast": "how fast: the same result to 0.1 %",
    "repository": "where a result is pushed or pulled from",
    "private": "who sees a repository",
    "license": "shown: on the card of a repository",
    "revision": "where in a repository",
    "dataset": "where on the hub",
    "coco": "where captions are written too",
    "embed store": "where the result is written",
    "import store": "where the result is written",
    "import model": "shown: the model that the store names",
    "means load store": "where moments are loaded",
    "means unload store": "where moments are loaded",
    "caption model": "where the decoder's model is read from: another model is an error",
    "caption random_init": "which weights the decoder's model has: others are an error",
    "table": "where the table is written",
    "pairs seed": "which other rows pairs are compared with; the estimates hardly change",
    "here": "shown: of the models, those that are on this machine",
}
"""Options that change where, how fast, or what is shown, with what that is."""


@dataclass(frozen=True)
class Case:
    """An option that is tried.

    Attributes:
        value: what is typed after its name.
        base: the command line that it is added to; by default that of `BASES`.
        than: the value whose result it is compared with; by default that of the option's default,
            which can take long.
    """

    value: str = ""
    base: str | None = None
    than: str | None = None


ROOT = Path(__file__).parents[2]
EMBED = "embed photos --workers 0 --backend torch --precision fp32 --model local-dir:tiny --store s"
IMPORT = "import --image i.npy --text i.npy --store s"
TRAIN = "train-decoder --size tiny --epochs 1 --precision fp32 --sigma 0.1 -o new"
ABLATE = "ablate --methods C3 --seeds 1 --epochs 1 --size tiny --precision fp32 --metrics ROUGE-L"
TOWERS = "photos --model local-dir:tiny --epochs 1 --batch-size 16 --precision fp32"
PHOTOS = "--store photos-store"
GENERATOR = f"train-generator {PHOTOS} --sigma 0.1 --precision fp32 --steps 2 -o new"
ABLATE_IMAGES = (
    f"ablate-images {PHOTOS} --methods C3 --seeds 1 --steps 2 --sigma 0.1 --precision fp32"
)
GENERATE = "generate --embeddings ten.npy --generator c3-generator --sampling-steps 1"
EVALUATE = "evaluate --decoder c3-decoder --metrics ROUGE-L --resamples 9"
CAPTION = "caption --embeddings c3-store --decoder c3-decoder"
HEADS = "connect heads --dim 8 --hidden 8 --batch-size 40 --epochs 1 --precision fp32 -o new"
BASES = {
    "embed": EMBED,
    "import": IMPORT,
    "connect heads": HEADS,
    "connect apply": "connect apply -o new",
    "connect lit": f"connect lit {TOWERS}",
    "connect full": f"connect full {TOWERS}",
    "means save": "means save m.safetensors",
    "means load": "means load two.safetensors",
    "means merge": "means merge two.safetensors -o m.safetensors",
    "gap-report": "gap-report --presets raw",
    "export": "export --workers 1 --sigma 0.1",
    "train-decoder": TRAIN,
    "caption": CAPTION,
    "train-generator": GENERATOR,
    "generate": GENERATE,
    "evaluate": EVALUATE,
    "evaluate-images": "evaluate-images c3-images --store photos-store",
    "ablate": f"{ABLATE} --sigma 0.1",
    "ablate-images": ABLATE_IMAGES,
    "search": "search --key image01",
    "verify": "verify",
    "merge": "merge c3-store other --prefix -o new",
    "split": "split -o new",
    "push": "push c3-store someone/name",
    "pull": "pull someone/name",
    "simulate init-gap": "simulate init-gap photos --model local-dir:tiny --seeds 1",
    "simulate depth": "simulate depth --width 8 --layers 5 --rows 20",
    "simulate gap-after-training": "simulate gap-after-training --steps 2 --every 1",
    "simulate stable-region": "simulate stable-region --tau 0.04 --tau 0.1 --delta 0.5",
    "simulate temperature": "simulate temperature --scale 5 --steps 2",
}
"""Command lines that options are added to; by default the command alone."""


def without(line: str, *options: str) -> str:
    """Return a command line without options and their values."""
    words = line.split()
    for option in options:
        at = words.index(option)
        del words[at : at + 2]
    return " ".join(words)


CASES = {
    # of all commands
    "seed": Case("3"),
    "seeds": Case("2"),
    "sigma": Case("0.3"),
    "split": Case("val"),
    "store": Case("other"),
    "preset": Case("c1"),
    "modality": Case("text"),
    "train_split": Case("val"),
    "dtype": Case("float32"),
    "list_all": Case(),
    "steps": Case("3"),
    "epochs": Case("2"),
    # embed
    "embed captions": Case("mine.jsonl"),
    "embed text_column": Case(
        "other", "embed table.csv --workers 0 --model local-dir:tiny --store s"
    ),
    "embed image_column": Case("second", f"embed table.csv {EMBED.partition('photos ')[2]}"),
    "embed key_column": Case(
        "name", "embed table.csv --workers 0 --model local-dir:tiny --store s"
    ),
    "embed keep_columns": Case("license"),
    "embed images_root": Case("photos", f"embed paths.csv {EMBED.partition('photos ')[2]}"),
    "embed model": Case("c3-mini", without(EMBED, "--model")),
    "embed random_init": Case("7"),
    "embed truncate_dim": Case("8"),
    "embed long_texts": Case("chunk", EMBED.replace("photos", "long.txt")),
    "embed exact_decoding": Case(),
    "embed shard_size": Case("3"),
    "embed fps": Case("2"),
    "embed retry_failed": Case(),
    "embed update": Case(),
    "embed prune": Case(),
    "embed faiss": Case(),
    "embed dry_run": Case(),
    "embed follow_symlinks": Case("", EMBED.replace("photos", "linked")),
    # import
    "import image": Case("t.npy", "import --text t.npy --store s"),
    "import text": Case("i.npy", "import --image i.npy --store s"),
    "import other": Case("audio=i.npy"),
    "import meta": Case("ids.jsonl", "import --image i.npy --store s"),
    "import text_meta": Case(
        "texts-of.jsonl", "import --image i.npy --text i.npy --meta ids.jsonl --store s"
    ),
    "import image_array": Case("b", "import --image both.npz --store s"),
    "import text_array": Case("b", "import --text both.npz --store s"),
    "import key_column": Case("name", "import --image i.npy --meta named.jsonl --store s"),
    "import image_key_column": Case(
        "of",
        "import --image i.npy --text i.npy --meta ids.jsonl --text-meta texts-of.jsonl --store s",
    ),
    "import caption_column": Case("name", "import --text i.npy --meta named.jsonl --store s"),
    "import split_column": Case("fold", "import --image i.npy --meta named.jsonl --store s"),
    "import keep_columns": Case("fold", "import --image i.npy --meta named.jsonl --store s"),
    "import normalise": Case("", "import --image longer.npy --store s"),
    # connect
    "connect image": Case("other.npy", "connect apply -o new --text far.npy", than="far.npy"),
    "connect heads image": Case("many2.npy", f"{HEADS} --text many.npy", than="many.npy"),
    "connect text": Case("other.npy", "connect apply -o new --image far.npy", than="far.npy"),
    "connect heads text": Case("many2.npy", f"{HEADS} --image many.npy", than="many.npy"),
    "connect other": Case(
        "text=other.npy", "connect apply -o new --image far.npy", than="text=far.npy"
    ),
    "connect heads other": Case(
        "audio=many2.npy", f"{HEADS} --image many.npy", than="audio=many.npy"
    ),
    "connect meta": Case("ids.jsonl"),
    "connect text_meta": Case("texts-of.jsonl"),
    "connect image_array": Case("b"),
    "connect text_array": Case("b"),
    "connect second_store": Case("other"),
    "connect heads dim": Case("4", without(HEADS, "--dim")),
    "connect heads hidden": Case("4", without(HEADS, "--hidden")),
    "connect heads dropout": Case("0.5"),
    "connect heads cone": Case("1.33"),
    "connect heads epochs": Case("2", without(HEADS, "--epochs")),
    "connect heads batch_size": Case("20", without(HEADS, "--batch-size")),
    "connect logit_scale": Case("5"),
    "connect close_gap": Case("0.5"),
    "connect learning_rate": Case("0.1"),
    "connect train_split": Case("test"),
    "connect captions": Case("mine.jsonl"),
    "connect model": Case("c3-mini"),
    "connect random_init": Case("7"),
    "connect full augment": Case(),
    # stores
    "verify store": Case("incomplete"),
    "verify repair": Case("", "verify damaged"),
    "verify forget": Case("", "verify incomplete"),
    "merge keep": Case("first", "merge c3-store other -o new"),
    "merge prefix": Case("", "merge c3-store other -o new"),
    "split fractions": Case("0.5,0.25,0.25"),
    "split file": Case("splits.jsonl"),
    "split key_column": Case("name", "split -o new --file two-splits.jsonl"),
    "split split_column": Case("fold", "split -o new --file two-splits.jsonl"),
    "pairs split": Case("train"),
    "pairs drop": Case("0.1"),
    "pairs least": Case("100"),
    "duplicates cosine": Case("0.5"),
    # geometry
    "gap-report modalities": Case("image"),
    "gap-report presets": Case("whiten", "gap-report"),
    "simulate init-gap model": Case("c3-mini", "simulate init-gap photos --seeds 1"),
    "simulate init-gap seeds": Case("2", "simulate init-gap photos --model local-dir:tiny"),
    "simulate depth width": Case("4", "simulate depth --layers 5 --rows 20"),
    "simulate depth layers": Case("10", "simulate depth --width 8 --rows 20"),
    "simulate depth rows": Case("30", "simulate depth --width 8 --layers 5"),
    "simulate gap-after-training every": Case("1", "simulate gap-after-training --steps 2"),
    "simulate gap-after-training steps": Case(
        "3", "simulate gap-after-training --every 1", than="2"
    ),
    "simulate stable-region tau": Case(
        "0.03", "simulate stable-region --tau 0.1 --delta 0.5", than="0.04"
    ),
    "simulate stable-region delta": Case(
        "0.4", "simulate stable-region --tau 0.04 --tau 0.1", than="0.5"
    ),
    "simulate temperature store": Case("c3-store"),
    "simulate temperature scale": Case("20", "simulate temperature --steps 2"),
    "simulate temperature steps": Case("3", "simulate temperature --scale 5"),
    # export, index, search
    "export preset": Case("c1", "export --workers 1"),
    "export pipeline": Case("steps.yaml", "export --workers 1"),
    "export format": Case("npy"),
    "export modality": Case("text"),
    "export sigma": Case("0.3", "export --workers 1"),
    "export role": Case("inference"),
    "export train_on": Case("image"),
    "export before_noise": Case(),
    "index factory": Case("IVF4,Flat"),
    "index split": Case("train"),
    "index pipeline": Case("steps.yaml"),
    "index recall": Case("0.1", "index --factory IVF16,Flat"),
    "index rebuild": Case("", "index -o c3-index"),
    "search image": Case("photos/000000000285.jpg", "search --index mini-index"),
    "search vector": Case("one.npy", "search"),
    "search key": Case("image02", "search"),
    "search modality": Case("image", "search --vector one.npy"),
    "search within": Case("text"),
    "search split": Case("train"),
    "search separate": Case(),
    "search k": Case("3"),
    "search nprobe": Case("1", "search --key image01 --index ivf --in text -k 50"),
    "search store": Case("other"),
    "search index": Case("mini-index", "search --key photo001"),
    # decoders
    "train-decoder preset": Case("c2-corrupt"),
    "train-decoder sigma": Case("0.3", without(TRAIN, "--sigma")),
    "train-decoder size": Case("small", without(TRAIN, "--size"), than="tiny"),
    "train-decoder set": Case("dropout=0.5"),
    "train-decoder unconditional": Case("", without(TRAIN, "--sigma")),
    "train-decoder epochs": Case("2", without(TRAIN, "--epochs"), than="1"),
    "train-decoder train_fraction": Case("0.5"),
    "train-decoder patience": Case("0", f"{without(TRAIN, '--epochs')} --epochs 4", than="3"),
    "train-decoder monitor": Case("cross-modal"),
    "train-decoder start": Case("c3-decoder", without(TRAIN, "--size", "--sigma")),
    "train-decoder pairs": Case("0.5"),
    "train-decoder esper": Case("", "train-decoder --from c3-lm -o out --epochs 1"),
    "caption embeddings": Case("other", "caption --decoder c3-decoder"),
    "caption modality": Case("text"),
    "caption key": Case("text"),
    "caption decoder": Case("decoder2", "caption --embeddings c3-store"),
    "caption txt": Case("", "caption few --decoder c3-mini --beams 1"),
    "caption xmp": Case("", "caption few --decoder c3-mini --beams 1"),
    "caption follow_symlinks": Case("", "caption linked --decoder c3-mini --beams 1"),
    "beams": Case("1"),
    "length_penalty": Case("3"),
    "top_p": Case("0.9"),
    "temperature": Case("2"),
    "evaluate-images split": Case("train"),
    "ablate-images split": Case("train"),
    "steer": Case("magic"),
    "evaluate captions": Case("captions.json", "evaluate --metrics ROUGE-L --resamples 9"),
    "evaluate references": Case("references.jsonl"),
    "evaluate against": Case("captions.json"),
    "evaluate decoder": Case("decoder2", without(EVALUATE, "--decoder")),
    "evaluate metrics": Case("CIDEr", without(EVALUATE, "--metrics")),
    "evaluate resamples": Case("0", without(EVALUATE, "--resamples")),
    "ablate methods": Case("C1", f"{without(ABLATE, '--methods')} --sigma 0.1"),
    "ablate seeds": Case("2", f"{without(ABLATE, '--seeds')} --sigma 0.1"),
    "ablate sigma": Case("0.3", ABLATE),
    "ablate size": Case("small", f"{without(ABLATE, '--size')} --sigma 0.1"),
    "ablate set": Case("dropout=0.5"),
    "ablate epochs": Case("2", f"{without(ABLATE, '--epochs')} --sigma 0.1"),
    "ablate metrics": Case("CIDEr", f"{without(ABLATE, '--metrics')} --sigma 0.1"),
    # generators
    "train-generator preset": Case("c2-corrupt"),
    "train-generator sigma": Case("0.3", without(GENERATOR, "--sigma")),
    "train-generator size": Case("small"),
    "train-generator set": Case("learning_rate=0.1"),
    "train-generator steps": Case("3", without(GENERATOR, "--steps")),
    "train-generator store": Case("photos-store", without(GENERATOR, "--store")),
    "generate captions": Case("notes.txt", without(GENERATE, "--embeddings")),
    "generate split": Case(
        "val", without(GENERATE, "--embeddings") + " --captions split-captions.jsonl"
    ),
    "generate embeddings": Case("eleven.npy", without(GENERATE, "--embeddings")),
    "generate modality": Case("image"),
    "generate images": Case("photos/000000000285.jpg", without(GENERATE, "--embeddings")),
    "generate generator": Case("generator2", without(GENERATE, "--generator")),
    "generate n": Case("2"),
    "generate sampling_steps": Case("2", without(GENERATE, "--sampling-steps")),
    "generate guidance": Case("3"),
    "evaluate-images images": Case("images2", f"evaluate-images {PHOTOS}"),
    "evaluate-images store": Case("photos-store", "evaluate-images c3-images"),
    "evaluate-images encoder": Case("local-dir:tiny"),
    "ablate-images methods": Case("C1", without(ABLATE_IMAGES, "--methods")),
    "ablate-images seeds": Case("2", without(ABLATE_IMAGES, "--seeds")),
    "ablate-images sigma": Case("0.3", without(ABLATE_IMAGES, "--sigma")),
    "ablate-images store": Case("photos-store", without(ABLATE_IMAGES, "--store")),
    "ablate-images size": Case("small"),
    "ablate-images set": Case("learning_rate=0.1"),
    "ablate-images steps": Case("3", without(ABLATE_IMAGES, "--steps")),
    "ablate-images encoder": Case("local-dir:tiny"),
    # others
}
"""Values to try, by option, or by command and option."""

BY_ROOMS = {
    "import source": "tests/store/test_import_embeddings.py",
    "generate guidance": "tests/imaging/test_generation.py",
    "embed fps": "tests/embedding/test_videos.py",
    "embed truncate_dim": "tests/encoders/test_sentence_transformers.py",
    "search query_prompt": "tests/encoders/test_sentence_transformers.py",
    "embed query_prompt": "tests/encoders/test_sentence_transformers.py",
    "connect heads modalities": "tests/connect/test_pairs.py",
    "connect apply modalities": "tests/connect/test_pairs.py",
    "connect heads patience": "tests/connect/test_training.py",
    "connect lit patience": "tests/connect/test_training.py",
    "connect full patience": "tests/connect/test_training.py",
    "export refit": "tests/export/test_following.py",
    "ablate test_store": "tests/ablation/test_captions.py",
    "gap-report by": "tests/geometry/test_report.py",
    "generate store": "tests/imaging/test_pretrained.py",
    "pairs modalities": "tests/curation/test_pairs.py",
    "left-out store": "tests/store/test_left_out.py",
    "duplicates store": "tests/curation/test_duplicates.py",
    "duplicates modality": "tests/curation/test_duplicates.py",
    "evaluate modality": "tests/captioning/test_evaluate.py",
    "search pairs": "tests/index/test_index.py",
    "search audio": "tests/encoders/test_sentence_transformers.py",
    "caption steer": "tests/captioning/test_baselines.py",
    "evaluate steer": "tests/captioning/test_baselines.py",
    "train-decoder esper": "tests/captioning/test_train.py",
    "push folder": "tests/io/test_hub.py",
    "serve index": "tests/serve/test_app.py",
    "demo photos_to": "tests/demo/test_demo.py",
    "demo seeds": "tests/demo/test_demo.py",
    "demo sigma": "tests/demo/test_demo.py",
    "demo size": "tests/demo/test_demo.py",
    "demo captions": "tests/demo/test_demo.py",
    "demo images": "tests/demo/test_demo.py",
}
"""Options that need a video, a sound, a server or minutes, with the tests of their effect."""


def case_of(command: str, option: str) -> Case | None:
    """Return the case of an option: of the command, of its group, or of all commands."""
    group = command.partition(" ")[0]
    keys = (f"{command} {option}", f"{group} {option}", option)
    return next((CASES[key] for key in keys if key in CASES), None)


def options_of(command: str) -> Iterator[Any]:
    """Yield the options and arguments of a command, as the shell has them."""
    found: Any = typer.main.get_command(app)
    for word in command.split():
        found = found.get_command(None, word)
    yield from found.params


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


SETTINGS = {option.name for command in COMMANDS for option in options_of(command)} - {
    "captions",
    "images",
    "texts",
    "modality",
    "split",
}
SETTINGS |= {"settings", "seconds", "training_seconds", "made_from", "command", "provenance"}
SETTINGS |= {"fingerprint", "digest", "changes", "notes", "tokens", "elapsed", "timings", "rate"}


@pytest.fixture
def workbench(options_workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that runs a command line in a fresh copy of the workplace, and returns its
    result and evidence.
    """
    copies = options_workplace.parent / "copies"
    micro_sizes(monkeypatch)
    number = 0

    def run(line: str) -> tuple[Result, dict[str, Any]]:
        nonlocal number
        number += 1
        folder = copies / f"{number}"
        shutil.copytree(options_workplace, folder, symlinks=True)
        monkeypatch.chdir(folder)
        result = CliRunner().invoke(app, [*shlex.split(line), "--json"], prog_name="c3")
        made = evidence(result, folder, options_workplace)
        shutil.rmtree(folder)
        return result, made

    yield run
    shutil.rmtree(copies, ignore_errors=True)


def without_effect(command: str, run: Any) -> list[str]:
    """Return the options of a command that neither change its result nor are refused."""
    plain: dict[str, Any] = {}
    ignored = []
    for option in options_of(command):
        if option.param_type_name == "argument":
            continue
        full_name = f"{command} {option.name}"
        if option.name in ELSEWHERE or full_name in ELSEWHERE or full_name in BY_ROOMS:
            continue
        case = case_of(command, option.name)
        if case is None:
            ignored.append(f"{option.name}: there is no case")
            continue
        base = case.base or BASES.get(command, command)
        flag = option.opts[0]
        if option.secondary_opts and option.default:
            flag = option.secondary_opts[0]
        compared = base if case.than is None else f"{base} {flag} {case.than}"
        if compared not in plain:
            _, plain[compared] = run(compared)
        line = f"{base} {flag} {case.value}"
        result, made = run(line)
        if result.exit_code == 2 and flag in result.stderr:
            continue  # it is refused
        if result.exit_code not in (0, NOT_WHOLE):
            problem = " ".join(result.output.split())[-250:]
            ignored.append(f"{option.name}: {line} ends with an error: {problem}")
        elif made == plain[compared]:
            ignored.append(f"{option.name}: {line}")
    return ignored


SLOW = (
    "embed",
    "connect lit",
    "connect full",
    "train-decoder",
    "caption",
    "train-generator",
    "generate",
    "evaluate-images",
    "ablate",
    "ablate-images",
    "gap-report",
    "simulate init-gap",
    "simulate temperature",
)
QUICK = [command for command in COMMANDS if command not in SLOW]
"""Commands that neither encode nor train for long; `C3_ALL_OPTIONS=1` tries the others too."""


@pytest.mark.parametrize("command", COMMANDS if os.environ.get("C3_ALL_OPTIONS") else QUICK)
def test_every_option_has_an_effect(workbench: Any, command: str) -> None:
    assert without_effect(command, workbench) == []


def test_an_ignored_option_is_noticed(workbench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    split_store = c3tools.split_store
    monkeypatch.setattr(
        c3tools, "split_store", lambda **options: split_store(**{**options, "seed": 0})
    )
    assert without_effect("split", workbench) == ["seed: split -o new --seed 3"]


def test_the_lists_name_options_that_exist() -> None:
    names = {
        key
        for command in COMMANDS
        for option in options_of(command)
        for key in (
            option.name,
            f"{command} {option.name}",
            f"{command.partition(' ')[0]} {option.name}",
        )
    }
    assert {*ELSEWHERE, *CASES, *BY_ROOMS} - names == set()
    for file in BY_ROOMS.values():
        assert (ROOT / file).is_file()


def micro_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trainings of decoders and generators take a moment."""
    sizes = dict(decoder_sizes.SIZES)
    for number, name in enumerate(("tiny", "small"), 1):
        size: Any = sizes[name]
        sizes[name] = replace(
            size, width=16 * number, layers=1, heads=1, prefix_length=1, vocab_size=64
        )
    monkeypatch.setattr(decoder_sizes, "SIZES", MappingProxyType(sizes))
    small = replace(MICRO_SIZE, channels=(8, 16))
    monkeypatch.setattr("c3tools.imaging.model.SIZES", {"tiny": MICRO_SIZE, "small": small})
    monkeypatch.setattr("c3tools.ablation.images.SAMPLING_STEPS", 1)


@pytest.fixture(scope="session")
def options_workplace(
    made_workplace: Path, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The workplace of the other tests, with what the cases need beside."""
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

        # Photos with captions, of which one cannot be read at first
        copy_photos(folder / "few", 2)
        (folder / "linked").mkdir()
        shutil.copy(next((folder / "photos").glob("*.jpg")), folder / "linked")
        outside = sorted((folder / "few").glob("*.jpg"))[1]
        (folder / "linked" / "link.jpg").symlink_to(outside)
        mini_store(folder / "photos-store", encoder, photos=12)
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
        write_jsonl(Path("mine.jsonl"), *({"image": p, "captions": ["other"]} for p in photos))
        drawn = [
            {"image": f"{n}.jpg", "captions": [f"thing {n}"], "split": folds[n]} for n in range(4)
        ]
        write_jsonl(Path("split-captions.jsonl"), *drawn)
        Path("table.csv").write_text(
            "caption,other,name,image,second\n"
            f"a dog,a cat,n1,photos/{photos[0]},photos/{photos[1]}\n"
        )
        Path("paths.csv").write_text(f"image,caption\n{photos[0]},a dog\n")
        Path("long.txt").write_text("a dog on the beach " * 60 + "\n")
        test_keys = Store.open("c3-store").load("image", "test").keys
        references = [{"key": key, "captions": ["a red dog"]} for key in test_keys]
        write_jsonl(Path("references.jsonl"), *references)
        captions = [{"key": key, "caption": "a red dog on the beach"} for key in test_keys]
        Path("captions.json").write_text(json.dumps(captions))
        np.save("one.npy", Store.open("other").load("text").embeddings[:1])
        np.save("longer.npy", 3 * np.load("i.npy"))
        np.save("other.npy", np.load("far.npy")[::-1, ::-1])
        np.save("many2.npy", unit_rows(60, 32, 1))
        np.save("many.npy", unit_rows(60, 32))
        np.save("ten.npy", unit_rows(2, encoder.dim))
        np.save("eleven.npy", unit_rows(2, encoder.dim, 1))
        # Stores that are damaged or incomplete
        for name in ("damaged", "incomplete"):
            shutil.copytree("texts", name)
        part = next(Path("damaged/text").glob("*.parquet"))
        part.write_bytes(b"cut")
        next(Path("incomplete/text").glob("*.parquet")).unlink()
        # Results that are read again
        c3("means save m2.safetensors --store other")
        c3("means save two.safetensors --split all")
        c3(without(HEADS, "-o"))
        c3(f"{without(HEADS, '-o')} --seed 1 -o other-heads")
        c3("index --factory IVF16,Flat -o ivf")
        c3("index --store photos-store -o mini-index")
        c3(f"{without(TRAIN, '-o')} -o decoder2")
        c3(without(GENERATOR, "-o"))
        c3(f"{without(GENERATOR, '-o')} --seed 1 -o generator2")
        c3(f"{GENERATE} -n 3")
        c3(f"{GENERATE} -n 3 --seed 5 -o images2")
    return folder
