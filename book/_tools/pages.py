"""Look at the built pages as a browser, a search engine and a screen reader do.

    python book/_tools/pages.py [_build/html]

For each page: its weight with all that it loads, pictures that keep their place, headings in
order, names for what can be pressed, links that lead somewhere, nothing asked of another host,
search at hand for the keyboard; and for the style sheets the contrast of text in light and dark.
`make book` and `make test` run this after the build.
"""

from __future__ import annotations

import argparse
import gzip
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lxml import html

ROOT = Path(__file__).resolve().parents[2]
HEAVIEST = 2_000_000  # bytes of a page with all that it loads, as they travel
LEAST_CONTRAST = 4.5  # WCAG 2.2, level AA, for text of usual size
TEXTS = ("text-base", "text-muted", "heading", "link", "link-hover", "primary", "inline-code")
GROUNDS = ("--pst-color-background", "--pst-color-surface", "--book-tint")
LOADED = {"stylesheet", "preload", "icon"}  # what a <link> may be that is loaded with the page
COMPRESSED = {".html", ".css", ".js", ".svg"}


@dataclass(frozen=True)
class Page:
    """A built page."""

    path: Path

    @cached_property
    def root(self) -> html.HtmlElement:
        """What is on it."""
        return html.document_fromstring(self.path.read_text(encoding="utf-8"))

    @cached_property
    def ids(self) -> Counter[str]:
        """How often each anchor is on it."""
        return Counter(self.root.xpath("//@id"))

    def target(self, address: str) -> Path:
        """The file that an address on this page names."""
        path = unquote(urlsplit(address).path)
        return (self.path.parent / path).resolve() if path else self.path


def find(folder: Path) -> list[Page]:
    """All pages of a built book, but those that only lead on to another."""
    pages = [Page(p.resolve()) for p in sorted(folder.rglob("*.html")) if "_static" not in p.parts]
    return [page for page in pages if not page.root.xpath("//meta[@http-equiv='Refresh']")]


# ---------------------------------------------------------------------------- weight


def asked_for(page: Page) -> Iterator[str]:
    """The addresses of what a page makes a browser load."""
    for tag in page.root.iter("script", "img", "link", "source", "iframe"):
        if tag.tag != "link" or LOADED & set(tag.get("rel", "").split()):
            yield from filter(None, [tag.get("src") or tag.get("href")])


@cache
def travelling(path: Path) -> int:
    """Bytes of a file as a web server sends it: text is compressed."""
    content = path.read_bytes()
    return len(gzip.compress(content)) if path.suffix in COMPRESSED else len(content)


def loads(page: Page) -> set[Path]:
    """The page and every file that it makes a browser load, fonts of its mathematics included.

    An upper bound: all pictures, also those that wait until the reader comes near, and all the
    fonts of the style sheets that the page has a letter for.
    """
    found = {page.path}
    found |= {page.target(address) for address in asked_for(page) if not urlsplit(address).scheme}
    icons = {name for names in page.root.xpath("//@class") for name in names.split()}
    for sheet in [path for path in found if path.suffix == ".css" and path.exists()]:
        for face in re.findall(r"@font-face\s*{([^}]*)}", sheet.read_text(encoding="utf-8")):
            brand = "Brands" in face and not {"fab", "fa-brands"} & icons
            outline = "Awesome" in face and "400" in face and not {"far", "fa-regular"} & icons
            if not (brand or outline):  # the first file of a face is the one that is taken
                first = re.search(r"url\([\"']?([^\"')?#]+)", face)
                found |= {(sheet.parent / first[1]).resolve()} if first else set()
    for script in [path for path in found if path.parent.name == "mathjax"]:
        if "math" in icons:
            found |= set(script.parent.rglob("*.woff"))
        else:
            found.discard(script)
    return found


def check_weight(page: Page) -> Iterator[str]:
    """A page with all that it loads is below the limit."""
    files = [path for path in loads(page) if path.exists()]
    if (weight := sum(map(travelling, files))) > HEAVIEST:
        worst = ", ".join(path.name for path in sorted(files, key=travelling)[-3:])
        yield f"weighs {weight / 1e6:.2f} MB with what it loads; the heaviest are {worst}"


def check_hosts(page: Page) -> Iterator[str]:
    """The page reads offline: it loads nothing from another host, and all that it loads exists."""
    for address in asked_for(page):
        if urlsplit(address).netloc:
            yield f"loads {address} from another host"
    for path in sorted(loads(page)):
        if not path.exists():
            yield f"loads {path.name}, which is not there"
        elif path.suffix == ".css":
            for address in re.findall(r"url\([\"']?((?:https?:)?//[^\"')]+)", path.read_text()):
                yield f"{path.name} loads {address} from another host"


# ---------------------------------------------------------------------------- what is on the page


def check_head(page: Page) -> Iterator[str]:
    """Language, title, description."""
    if not page.root.get("lang"):
        yield "<html> has no lang"
    if not page.root.findtext(".//title", "").strip():
        yield "has no title"
    descriptions = page.root.xpath("//meta[@name='description']/@content")
    if len(descriptions) != 1 or not descriptions[0].strip():
        yield f"has {len(descriptions)} descriptions; one with text is needed"


def check_headings(page: Page) -> Iterator[str]:
    """One title, and headings that go down one step at a time."""
    headings = list(page.root.iter(*(f"h{level}" for level in range(1, 7))))
    levels = [int(tag.tag[1]) for tag in headings]
    if levels.count(1) != 1 or levels[0] != 1:
        yield f"needs one <h1>, before all headings; found levels {levels[:6]}"
    for before, tag in zip(levels, headings[1:], strict=False):
        if int(tag.tag[1]) > before + 1:
            yield f"heading {words(tag)!r} jumps from level {before} to {tag.tag}"


def check_pictures(page: Page) -> Iterator[str]:
    """A text for each picture, its size, and no wait for those further down."""
    for tag in page.root.iter("img"):
        name = tag.get("src", "")
        if "alt" not in tag.attrib:
            yield f"picture {name} has no alt text"
        if not (tag.get("width") and tag.get("height")):
            yield f"picture {name} has no width and height, so text moves when it comes"
    for tag in page.root.xpath("//article//img")[1:]:
        if tag.get("loading") != "lazy":
            yield f"picture {tag.get('src')} is below the first and not lazy"


def check_links(pages: Iterable[Page]) -> Iterator[tuple[Page, str]]:
    """Links inside the book lead to a file, and to an anchor that is on it; anchors are unique."""
    known = {page.path: page for page in pages}
    for page in known.values():
        for name, times in page.ids.items():
            if times > 1:
                yield page, f"id {name!r} is used {times} times"
        for link in page.root.xpath("//a/@href"):
            address = urlsplit(link)
            if address.scheme or address.netloc or link == "#":
                continue
            target, anchor = page.target(link), unquote(address.fragment)
            if not target.exists():
                yield page, f"link {link} leads nowhere"
            elif anchor and target in known and anchor not in known[target].ids:
                yield page, f"link {link} leads to no anchor"


def source(tag: html.HtmlElement) -> str:
    """An element as it is written."""
    return html.tostring(tag, encoding="unicode", with_tail=False)


def words(tag: html.HtmlElement) -> str:
    """The text of an element."""
    return " ".join(tag.text_content().split())


def name_of(tag: html.HtmlElement) -> str:
    """What a screen reader calls a link, a button or a field."""
    said = [tag.get("aria-label", ""), tag.get("title", ""), words(tag)]
    return " ".join(said + [image.get("alt", "") for image in tag.iter("img")]).strip()


def check_names(page: Page) -> Iterator[str]:
    """Links, buttons and fields have names; tables have header cells with text."""
    labels = set(page.root.xpath("//label/@for"))
    for tag in page.root.iter("a", "button", "summary", "input", "select", "textarea"):
        if tag.tag == "a" and not tag.get("href"):
            continue
        labelled = tag.get("id") in labels or next(tag.iterancestors("label"), None) is not None
        if not (name_of(tag) or labelled or tag.get("type") == "hidden"):
            yield f"{source(tag)[:80]!r} has no name"
    for table in page.root.xpath("//table[not(@role='presentation')]"):
        if not table.xpath(".//th"):
            yield f"the table {words(table)[:40]!r} has no header cells"
        for cell in table.iter("th"):
            if not (words(cell) or cell.xpath(".//img")):
                yield f"the table {words(table)[:40]!r} has an empty header cell"


def check_keyboard(page: Page) -> Iterator[str]:
    """The first stop leads to the text; search is a field; nothing leaves the order of the page."""
    first = next(page.root.body.iter("a", "button", "input"), None)
    if first is None or first.get("href", "").removeprefix("#") not in page.ids:
        yield "its first stop for the keyboard is no link to the text"
    if not page.root.xpath(
        "//form[@role='search']//input[@type='search'] | //form//input[@name='q']"
    ):
        yield "has no search field"
    for tag in page.root.xpath("//*[@tabindex > 0]"):
        yield f"{source(tag)[:60]!r} takes tabindex {tag.get('tabindex')}, out of the page's order"


# ---------------------------------------------------------------------------- colours


def luminance(colour: str) -> float:
    """Relative luminance of a colour `#rgb` or `#rrggbb`, by WCAG."""
    digits = colour.removeprefix("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(text: str, ground: str) -> float:
    """From 1, the same, to 21, black on white."""
    low, high = sorted((luminance(text), luminance(ground)))
    return (high + 0.05) / (low + 0.05)


def variables(css: str, theme: str) -> dict[str, str]:
    """The variables of a theme, with those that name others followed to a colour."""
    found: dict[str, str] = {}
    for selector, body in re.findall(r"([^{}]+){([^{}]*)}", re.sub(r"/\*.*?\*/", "", css)):
        themes = re.findall(r"(?:^|,)\s*html\[data-theme=\"?(\w+)\"?\]\s*(?=,|$)", selector.strip())
        if theme in themes:
            found.update(re.findall(r"(--[\w-]+):\s*([^;]+?)\s*(?:;|$)", body))
    for name in found:
        while follow := re.fullmatch(r"var\((--[\w-]+)\)", found[name]):
            found[name] = found.get(follow[1], "")
    return found


def check_contrast(css: str) -> Iterator[str]:
    """Text and code stand out from every ground, in the light and in the dark."""
    for theme in ("light", "dark"):
        values = variables(css, theme)
        texts = {name: values[f"--pst-color-{name}"] for name in TEXTS}
        code = rf"html\[data-theme=\"{theme}\"\] \.highlight \.(\w+) {{ color: (#\w+)"
        grounds = [values[name] for name in GROUNDS]
        texts |= {f"code .{kind}": colour for kind, colour in re.findall(code, css)}
        for name, colour in texts.items():
            worst = min(contrast(colour, ground) for ground in grounds)
            if worst < LEAST_CONTRAST:
                yield f"{theme}: {name} ({colour}) has contrast {worst:.2f}; {LEAST_CONTRAST} is due"


# ---------------------------------------------------------------------------- the command

CHECKS = (
    check_weight,
    check_hosts,
    check_head,
    check_headings,
    check_pictures,
    check_names,
    check_keyboard,
)


def faults(pages: list[Page]) -> Iterator[str]:
    """All that is amiss in a built book."""
    if not pages:
        yield "there are no built pages; `make book` builds them"
    for page in pages:
        for check in CHECKS:
            yield from (f"{page.path.name}: {fault}" for fault in check(page))
    yield from (f"{page.path.name}: {fault}" for page, fault in check_links(pages))
    links = [(p, link) for p in pages for link in p.root.xpath("//link[@rel='stylesheet']/@href")]
    sheets = dict.fromkeys(page.target(link) for page, link in links)
    if sheets:
        yield from check_contrast("\n".join(p.read_text("utf-8") for p in sheets if p.exists()))


def main() -> None:
    """Print the faults and exit with 1, or the weight of the heaviest page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "_build" / "html")
    pages = find(parser.parse_args().folder)
    if found := list(faults(pages)):
        raise SystemExit("\n".join(found))
    heaviest = max(sum(map(travelling, loads(page))) for page in pages)
    print(f"{len(pages)} built pages hold; the heaviest has {heaviest / 1e6:.2f} MB in all")


if __name__ == "__main__":
    main()
