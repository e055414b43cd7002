"""Find code spans of the manual that name what does not exist.

    python docs/spans.py

looks up each command, option, file, column, key, function, class and method that a code span of a
page names, and the commands and options in its blocks. `make docs` begins with it.
"""

from __future__ import annotations

import ast
import builtins
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import typer
from c3tools.cli import app
from c3tools.cli._app import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# of other programs and of examples; what a block of the page names needs no place here
FOREIGN = """
    --shm-size .venv/bin/python HF_HOME HF_TOKEN SentenceTransformer
    SentenceTransformer.encode TMPDIR caption_0 caption_1 captions_val2017.json
    cc12m-train-0001.tar coco_url dataset_coco.json dataset_flickr8k.json datasets.load_dataset
    default-jre-headless e0 e1 faiss.read_index flock fullgraph fused/P000 load_from_disk
    logs/DATE.log python3 query_batch_points restval test2015 train-00000-of-00002.parquet
    train2017 ubinary valid webdataset
""".split()
_BLOCK = re.compile(r"^```(\S*)\n(.*?)^```$|((?:^    [^\n]*\n)+)", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_COMMAND = re.compile(r"(?:\$ )?(?:[A-Z_]+=\S+ )*c3 ([a-z].*)")
_OPTION = re.compile(r"(?<!\S)--?[a-z][\w-]*")
_SUFFIX = r"\.(?:csv|faiss|html|jsonl?|md|npz|parquet|pkl|pyi?|safetensors|sh|svg|tar|toml|ya?ml)"
_FILE = re.compile(rf"[\w.*-]+(?:/[\w.*-]+)+/?|[\w.*-]+(?:/|{_SUFFIX})")
_KEYS = re.compile(r"[\w*@-]+(?:\.(?:[\w*@-]+|\{[\w@, -]+\}))+")
_WORD = re.compile(r"[A-Za-z_][\w@-]*")


def unknown(page: str) -> list[str]:
    """Return what a page in Markdown names although it does not exist, each as "kind: name"."""
    blocks = [(kind, body or lines) for kind, body, lines in _BLOCK.findall(page)]
    spans = [" ".join(span.split()) for span in _SPAN.findall(_BLOCK.sub("", page))]
    here = "\n".join([body for _, body in blocks] + [one for one in spans if _COMMAND.match(one)])
    found: list[str] = []
    for kind, body in blocks:
        lines = body.replace("\\\n", "").splitlines() if kind in ("", "bash", "console") else []
        for line in lines:
            for part in re.split(r"&&|\|", line.partition(" #")[0]):
                if command := _COMMAND.match(part.strip()):
                    found += _in_command(command[1])
    for text in spans:
        if command := _COMMAND.match(text):
            found += _in_command(command[1])
        else:
            found += _in_span(text, here)
    return list(dict.fromkeys(found))


def _in_command(text: str) -> Iterator[str]:
    """Yield the command or the options of a command line after `c3` that do not exist."""
    words = text.split()
    is_group = words[0] in _options() and words[0] not in COMMANDS
    command = " ".join(words[:2] if is_group else words[:1])
    if command not in _options():
        yield f"command: c3 {command}"
        return
    for option in _OPTION.findall(text):
        if option not in _options()[command]:
            yield f"option: c3 {command} {option}"


def _in_span(text: str, blocks: str) -> Iterator[str]:
    """Yield what a span names and neither the sources nor the blocks of its page have."""
    if text.startswith("-") or text.startswith("python "):
        for option in _OPTION.findall(text):
            if option not in set().union(FOREIGN, *_options().values()) and not _is_text(option):
                yield f"option: {option}"
    # of a call, the function; of an assignment, the name
    text = re.split(r"[(=]", text)[0] if re.match(r"[\w.]+[(=]", text) else text
    if text.startswith("python "):
        text = text.split()[1]
    if text in FOREIGN or re.search(rf"(?<![\w-]){re.escape(text)}(?![\w-])", blocks):
        return  # the page makes it
    if _FILE.fullmatch(text):
        if not _is_file(text):
            yield f"file: {text}"
    elif _KEYS.fullmatch(text):
        if not _is_dotted(text):
            yield f"name: {text}"
    elif _WORD.fullmatch(text) and not _is_name(text):
        yield f"name: {text}"


def _is_file(name: str) -> bool:
    """Tell whether the repository has a file or folder, or the sources name each of its parts."""
    name = name.rstrip("/")
    if _is_text(name) or any(path == name or path.endswith(f"/{name}") for path in _files()):
        return True
    # transform.json and transform.safetensors are written by one name
    return all(
        _is_text(re.sub(r"\.(json|safetensors)$", "", part)) or _is_text(part)
        for part in name.split("/")
    )


def _is_dotted(name: str) -> bool:
    first, *rest = name.removeprefix("c3tools.").split(".", 1)
    if first in _classes():
        return not rest or rest[0] in _members(first)
    return all(map(_is_name, _WORD.findall(name)))


def _is_name(name: str) -> bool:
    # capitals stand for a name of the reader
    return name in _names() or name.isupper() or _is_text(name)


@cache
def _is_text(name: str) -> bool:
    """Tell whether a text of the sources is this; a replaced field is any text."""
    texts, patterns = _texts()
    return name in texts or any(
        fnmatchcase(name, pattern)
        for pattern in patterns
        # one such as "*.json" or "c3tools/*" would match any name
        if not pattern.endswith("/*")
        and re.search(r"[\w-]{3}|@", pattern.rpartition(".")[0] or pattern)
    )


@cache
def _options() -> dict[str, set[str]]:
    """Return the options of each command and each group of commands."""
    options = {}
    for name in {*COMMANDS, *(name.split()[0] for name in COMMANDS)}:
        command: Any = typer.main.get_command(app)
        for word in name.split():
            command = command.get_command(None, word)
        flags = ((*one.opts, *one.secondary_opts) for one in command.params)
        options[name] = {"--help", *chain.from_iterable(flags)}
    return options


@cache
def _files() -> set[str]:
    """Return the files and folders of the repository."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    return {*listed, *(str(parent) for name in listed for parent in Path(name).parents)}


@cache
def _nodes() -> list[ast.AST]:
    """Return the parts of the sources."""
    folders = ("c3tools/", "cli/", "benchmarks/", "examples/", "docs/")
    names = [name for name in _files() if name.endswith(".py") and name.startswith(folders)]
    trees = [ast.parse((ROOT / name).read_text("utf-8")) for name in sorted(names)]
    return [node for tree in trees for node in ast.walk(tree)]


@cache
def _names() -> set[str]:
    """Return the functions, classes, parameters, attributes, modules, extras and commands."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = {*project["optional-dependencies"], *dir(builtins), *" ".join(COMMANDS).split()}
    names |= {Path(name).stem for name in _files()}
    for path in ROOT.glob("tests/**/*.py"):
        names |= set(re.findall(r"^def (\w+)", path.read_text("utf-8"), re.MULTILINE))
    for node in _nodes():
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg | ast.keyword):
            names.add(node.arg or "")
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        if isinstance(node, ast.Module | ast.ClassDef):
            names |= _assigned(node)
    return names


def _assigned(node: ast.Module | ast.ClassDef) -> set[str]:
    targets = [t for one in node.body if isinstance(one, ast.Assign) for t in one.targets]
    targets += [one.target for one in node.body if isinstance(one, ast.AnnAssign)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


@cache
def _classes() -> dict[str, ast.ClassDef]:
    return {node.name: node for node in _nodes() if isinstance(node, ast.ClassDef)}


def _members(name: str) -> set[str]:
    """Return the methods and attributes of a class and its bases."""
    node = _classes()[name]
    members = {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
    bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
    return members.union(_assigned(node), *(_members(one) for one in bases if one in _classes()))


@cache
def _texts() -> tuple[set[str], set[str]]:
    """Return the texts in the sources, and the patterns of those with replaced fields."""
    texts, patterns = set(), set()
    for path in ROOT.glob("examples/**/*.sh"):
        texts |= set(re.findall(r"[\w./-]+", path.read_text("utf-8")))
    for node in _nodes():
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.add(node.value.strip("/"))
        elif isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "*" for part in node.values]
            patterns.add("".join(map(str, parts)))
    return texts, patterns


def main() -> None:
    """Print each name that does not exist, with its page; exit with 1 if there is any."""
    found = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in PAGES
        for name in unknown(page.read_text("utf-8"))
    ]
    sys.exit("\n".join(found) or 0)


if __name__ == "__main__":
    main()
