"""The last touch to each page: what browsers, search engines and screen readers ask of it.

The theme leaves a few things open, and Sphinx calls no extension between its templates and the
file. So the written pages are mended here, each fault by its own small function from text to text;
book/_tools/pages.py then checks the result.
"""

from __future__ import annotations

import re
from functools import cache
from html import escape, unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml
from docutils import nodes
from PIL import Image

BUTTONS = ("use_repository_button", "use_issues_button", "use_edit_page_button")
FORMULA = "\0"  # stands for mathematics in the text of a paragraph
DESCRIPTION = (60, 200)  # letters of a page's description: fewer say little, more are cut off


def show_buttons(app: Any, config: Any) -> None:
    """The buttons that lead to the repository show as soon as `_config.yml` has its address.

    Jupyter Book would hand the address on itself, but for other options of the theme, which
    replace it.
    """
    settings = yaml.safe_load(Path(app.srcdir, "_config.yml").read_text("utf-8"))["repository"]
    if settings["url"]:
        config.html_theme_options |= {
            "repository_url": settings["url"],
            "repository_branch": settings["branch"],
            **dict.fromkeys(BUTTONS, True),
        }


def describe(app: Any, name: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Give a page its description: its first plain sentences, or its title and the book's."""
    text = description(doctree) if doctree else ""
    title = unescape(re.sub("<[^>]+>", "", context.get("title") or name))
    content = escape(text or f"{title}, {app.config.html_title}", quote=True)
    context["metatags"] = context.get("metatags", "") + (
        f'\n<meta name="description" content="{content}" />'
    )


def description(doctree: Any) -> str:
    """The first sentences of the page that need no formula or figure to be understood."""
    for paragraph in doctree.findall(nodes.paragraph):
        if not isinstance(paragraph.parent, nodes.section):
            continue
        words = "".join(
            FORMULA if isinstance(part.parent, nodes.math) else part.astext()
            for part in paragraph.findall(nodes.Text)
        )
        text = ""
        for sentence in re.split(r"(?<=[.?!])\s+(?=[A-Z])", " ".join(words.split())):
            hard = FORMULA in sentence or "Fig. " in sentence
            if not hard and len(text) + len(sentence) < DESCRIPTION[1]:
                text = f"{text} {sentence}".strip()
            elif text:
                break
        if len(text) >= DESCRIPTION[0] and text.endswith((".", "?", "!")):
            return text
    return ""


@cache
def picture_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels of a picture, drawn or painted.

    Raises:
        ValueError: an SVG without a viewBox.
    """
    if path.suffix != ".svg":
        with Image.open(path) as picture:
            return picture.size
    box = ElementTree.parse(path).getroot().get("viewBox")
    if box is None:
        raise ValueError(f"{path.name} has no viewBox, so its size is unknown")
    _, _, width, height = map(float, box.split())
    return round(width), round(height)


def size_pictures(html: str, folder: Path) -> str:
    """Tell the size of each picture, so that text stays put; load those below when they near."""
    seen = 0

    def sized(match: re.Match[str]) -> str:
        nonlocal seen
        tag, source = match[0], re.search(r'\bsrc="([^"]+)"', match[0])
        if not source or re.search(r"\b(width|height)=", tag) or ":" in source[1]:
            return tag
        width, height = picture_size((folder / source[1]).resolve())
        added = f' width="{width}" height="{height}"'
        if "logo" not in tag:
            seen += 1
            added += ' decoding="async"' + (' loading="lazy"' if seen > 1 else "")
        return re.sub(r"\s*/?>$", f"{added} />", tag)

    return re.sub(r"<img\b[^>]*>", sized, html)


def drop_scripts(html: str) -> str:
    """Leave out scripts without use here.

    The icons have a font, so the 1.5 MB of drawings that replace it are not needed; and cells
    cannot be run on the page, for which `thebe` would call another host.
    """
    html = re.sub(
        r'<script[^>]*src="[^"]*(?:fontawesome|sphinx-thebe)\.js[^>]*></script>', "", html
    )
    html = re.sub(r'<link[^>]*href="[^"]*sphinx-thebe\.css[^>]*>', "", html)
    html = re.sub(r"<script>const THEBE_JS_URL.*?</script>", "", html)
    html = re.sub(r'<script type="text/x-thebe-config">.*?</script>', "", html, flags=re.DOTALL)
    return re.sub(r"<script>kernelName = '[^']*'</script>", "", html)


def one_title(html: str) -> str:
    """The copy of title and contents for printing is no second set of headings."""
    start, middle, end = html.partition('<div id="jb-print-docs-body"')
    copy, article, end = end.partition("<article")
    copy = re.sub(r"<h([12])>(.*?)</h\1>", r'<p class="h\1">\2</p>', copy)
    return start + middle + copy + article + end


def own_ids(html: str) -> str:
    """Every exercise gives its content the same id; the style sheet takes a class as well."""
    return re.sub(r'<section id="((?:exercise|solution)-content)"', r'<section class="\1"', html)


def plain_names(html: str) -> str:
    """What is read aloud is what is seen: no empty headers, no label over a visible text."""
    html = re.sub(r"<th class=\"([^\"]*)\">(?:<p></p>|\s)*</th>", r'<td class="\1"></td>', html)
    html = html.replace('<summary aria-label="Toggle hidden content">', "<summary>")
    html = re.sub(r'<table( [^>]*class="indextable)', r'<table role="presentation"\1', html)
    html = html.replace(
        '<summary><span class="toctree-toggle"',
        '<summary aria-label="Pages below this one"><span class="toctree-toggle"',
    )
    html = html.replace(
        '<div id="pst-primary-sidebar"',
        '<div role="region" aria-label="Book" id="pst-primary-sidebar"',
    )
    return re.sub(
        r'(<button class="btn search-button-field[^>]*?)\s+aria-label="Search"', r"\1", html
    )


def finish(html: str, folder: Path) -> str:
    """A written page, mended; `folder` is where it lies."""
    return size_pictures(own_ids(plain_names(one_title(drop_scripts(html)))), folder)


def pages(folder: Path) -> list[Path]:
    """All pages of a built book; `_static` holds parts of pages."""
    return sorted(path for path in folder.rglob("*.html") if "_static" not in path.parts)


def finish_all(app: Any, error: Exception | None) -> None:
    """Sphinx's `build-finished`: mend all pages."""
    if error is None and app.builder.name == "html":
        for path in pages(Path(app.outdir)):
            path.write_text(finish(path.read_text("utf-8"), path.parent), "utf-8")


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("config-inited", show_buttons)
    app.connect("html-page-context", describe)
    app.connect("build-finished", finish_all)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
