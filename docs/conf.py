"""Settings of the documentation site; `make docs` builds it in build/docs."""

from __future__ import annotations

import html
import re
import runpy
from importlib.metadata import metadata
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.logging import getLogger

from c3tools import __version__
from c3tools.pages import palette

project = "c3tools"
SUMMARY = metadata("connect-collapse-corrupt")["Summary"]
copyright = "The c3tools developers"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "deflist"]

smartquotes = False  # it makes a dash of -- in options

html_theme = "furo"
html_title = f"c3tools {version}"
html_static_path = ["_static"]
html_css_files = ["c3tools.css"]
html_theme_options = {"navigation_with_keys": True}
html_copy_source = False
html_show_sphinx = False

default_role = "code"  # docstrings write `name` for code
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88


class InlineFigures(SphinxPostTransform):
    """Put SVG figures into the page, with the palette as CSS variables, so that they follow the
    light or dark theme.
    """

    default_priority = 5
    formats = ("html",)

    def run(self) -> None:
        """Replace each image node that names an .svg file of the documentation."""
        for image in list(self.document.findall(nodes.image)):
            uri = image["uri"]
            # Sphinx warns of missing files
            if uri.endswith(".svg") and Path(self.env.srcdir, uri).is_file():
                label = image.get("alt", "")
                svg = _inline(Path(self.env.srcdir, uri).read_text("utf-8"), Path(uri).stem, label)
                image.replace_self(nodes.raw("", f'<div class="figure">{svg}</div>', format="html"))


def _inline(svg: str, name: str, label: str) -> str:
    svg = svg[svg.index("<svg") :]
    for role, (light, _) in palette.ROLES.items():
        svg = svg.replace(light, f"var(--c3-{role})")
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    head = (
        f'<svg role="img" aria-label="{html.escape(label)}" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink" '
    )
    found = re.search(r'<svg [^>]*?(viewBox="0 0 ([\d.]+) [^"]*")[^>]*>', svg)
    if found is None:
        raise ValueError(f"{name}.svg has no viewBox.")
    # points; a phone shows it scrolled, at a readable size
    size = ' class="wide"' if float(found[2]) > 500 else ""
    return f"{head}{found[1]}{size}>{svg[found.end() :]}"


class CellWidths(SphinxPostTransform):
    """Name the cells of tables by what they hold: numbers stay on one line, and sentences get room
    on a phone.
    """

    default_priority = 5
    formats = ("html",)

    def run(self) -> None:
        """Add a class to each cell."""
        for entry in self.document.findall(nodes.entry):
            text = entry.astext()
            if not re.search(r"[^\W\d_]", text):
                entry["classes"].append("number")
            elif len(text) > 60:
                entry["classes"].append("sentence")
            elif len(text) > 16:
                entry["classes"].append("words")


def check_requests(app: Sphinx, failure: Exception | None) -> None:
    """Warn of pages that load something from another server."""
    loads = re.compile(
        r"""<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=["']((?:https?:)?//[^"']+)"""
    )
    for page in [] if failure else sorted(Path(app.outdir).rglob("*.html")):
        for address in loads.findall(page.read_text("utf-8")):
            getLogger(__name__).warning("%s loads %s from another server", page.name, address)


def write_help(app: Sphinx) -> None:
    """Write the help of every command to pages of the reference."""
    source = Path(app.srcdir, "reference.py")
    if source.is_file():
        folder = Path(app.srcdir, "reference", "commands")
        folder.mkdir(exist_ok=True)
        for name, page in runpy.run_path(str(source))["help_pages"]().items():
            (folder / name).write_text(page, encoding="utf-8")


def write_sources(app: Sphinx, failure: Exception | None) -> None:
    """Put each page as Markdown beside its HTML, and llms.txt, the list of them for programs that
    read the manual: title, link, and the first sentence.
    """
    if failure or app.builder.name != "html":
        return
    lines = [f"# {project}", "", f"> {SUMMARY}", ""]
    for name in sorted(app.env.found_docs):
        source = Path(app.env.doc2path(name))
        text = source.read_text("utf-8")
        if included := re.match(r"```\{include\} (\S+)", text):
            text = (source.parent / included[1]).read_text("utf-8")
        Path(app.outdir, f"{name}.md").write_text(text, encoding="utf-8")
        title = app.env.titles[name].astext()
        prose = re.sub(r"^```.*?^```$|^    [^\n]*$", "", text, flags=re.DOTALL | re.MULTILINE)
        first = re.search(r"^(?![#<|>:!-])\S.*$", prose, re.MULTILINE)
        about = re.split(r"(?<=[.?]) ", first[0])[0] if first else ""
        lines.append(f"- [{title}]({name}.md): {about}")
    Path(app.outdir, "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Register the transforms, the pages of help and the check."""
    app.connect("builder-inited", write_help)
    app.add_post_transform(InlineFigures)
    app.add_post_transform(CellWidths)
    app.connect("build-finished", check_requests)
    app.connect("build-finished", write_sources)
