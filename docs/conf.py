"""Settings of the documentation site; `make docs` builds it in build/docs."""

from __future__ import annotations

import html
import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

from c3tools import __version__
from c3tools.pages import palette

project = "c3tools"
copyright = "The c3tools developers"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "deflist"]

html_theme = "furo"
html_title = f"c3tools {version}"
html_static_path = ["_static"]
html_css_files = ["c3tools.css"]
html_theme_options = {"navigation_with_keys": True}
html_copy_source = False
html_show_sphinx = False

default_role = "code"  # docstrings write `name` for code
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88


class InlineFigures(SphinxPostTransform):
    """Put SVG figures into the page, with the palette as CSS variables, so that they follow the light or dark theme."""

    default_priority = 5
    formats = ("html",)

    def run(self) -> None:
        """Replace each image node that names an .svg file of the documentation."""
        for image in list(self.document.findall(nodes.image)):
            uri = image["uri"]
            if uri.endswith(".svg") and "://" not in uri:
                label = image.get("alt", "")
                svg = _inline(Path(self.env.srcdir, uri).read_text("utf-8"), Path(uri).stem, label)
                image.replace_self(nodes.raw("", f'<div class="figure">{svg}</div>', format="html"))


def _inline(svg: str, name: str, label: str) -> str:
    svg = svg[svg.index("<svg") :]
    for role, (light, _) in palette.ROLES.items():
        svg = svg.replace(light, f"var(--c3-{role})")
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    head = f'<svg role="img" aria-label="{html.escape(label)}" xmlns:xlink="http://www.w3.org/1999/xlink" '
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', lambda match: f"{head}{match[1]}>", svg, count=1)


def setup(app: Sphinx) -> None:
    """Register the transform."""
    app.add_post_transform(InlineFigures)
