"""Each check of the built pages, passing on a good page and failing on a broken one."""

import random

import pages
import pytest

HEAD = """<meta charset="utf-8"><title>A page</title><meta name="description" content="What it says.">
<link rel="stylesheet" href="_static/book.css"><link rel="index" href="https://example.org/">"""
BODY = """<a href="#main">Skip to the text</a>
<form role="search"><input type="search" name="q" aria-label="Search"></form>
<main id="main"><article><h1>A page</h1><h2 id="one">One</h2><h3>Deeper</h3><h2>Two</h2>
<img src="a.png" alt="A line" width="6" height="4">
<img src="a.png" alt="" width="6" height="4" loading="lazy">
<table><tr><th>n</th></tr><tr><td>1</td></tr></table>
<button title="Copy"></button><a href="b.html#two">there</a> <a href="https://example.org">out</a>
</article></main>"""
OTHER = BODY.replace('id="one"', 'id="two"').replace("b.html#two", "a.html#one")
COLOURS = {
    "light": ("#262a2e", "#fffefb"),
    "dark": ("#d6d5d0", "#17191b"),
}
CSS = "".join(
    f'html[data-theme="{theme}"] {{'
    + "".join(f"--pst-color-{name}: {text}; " for name in pages.TEXTS)
    + f"--pst-color-background: {ground}; --pst-color-surface: var(--pst-color-background);"
    + "--book-tint: var(--pst-color-surface); }"
    + f'html[data-theme="{theme}"] .highlight .k {{ color: {text} }}'
    for theme, (text, ground) in COLOURS.items()
)


@pytest.fixture
def book(tmp_path):
    folder = tmp_path / "html"
    (folder / "_static").mkdir(parents=True)
    (folder / "_static" / "book.css").write_text(CSS)
    (folder / "_static" / "part.html").write_text("<p>part of a page</p>")
    (folder / "a.png").write_bytes(b"")
    (folder / "index.html").write_text('<meta http-equiv="Refresh" content="0; url=a.html">')
    for name, body in (("a", BODY), ("b", OTHER)):
        page = f'<html lang="en"><head>{HEAD}</head><body>{body}</body></html>'
        (folder / f"{name}.html").write_text(page)
    return folder


def test_a_good_book_passes(book):
    assert list(pages.faults(pages.find(book))) == []
    assert [page.path.name for page in pages.find(book)] == ["a.html", "b.html"]


def test_no_pages_are_no_pass(tmp_path):
    assert "no built pages" in next(pages.faults(pages.find(tmp_path)))


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (' lang="en"', "", "no lang"),
        ("<title>A page</title>", "<title> </title>", "no title"),
        ('<meta name="description" content="What it says.">', "", "0 descriptions"),
        ("What it says.", " ", "1 descriptions; one with text"),
        ("<h1>A page</h1>", "", "needs one <h1>"),
        ("<h3>Deeper</h3>", "<h1>Again</h1>", "needs one <h1>"),
        ("<h1>A page</h1>", "<h2>First</h2><h1>A page</h1>", "needs one <h1>"),
        ("<h3>Deeper</h3>", "<h4>Deeper</h4>", "'Deeper' jumps from level 2 to h4"),
        (' alt="A line"', "", "a.png has no alt text"),
        (' width="6"', "", "has no width and height"),
        (' loading="lazy"', "", "below the first and not lazy"),
        ("<th>n</th>", "<td>n</td>", "has no header cells"),
        ("<th>n</th>", "<th> </th>", "an empty header cell"),
        (' title="Copy"', "", "<button></button>' has no name"),
        (' aria-label="Search"', "", "has no name"),
        (">there</a>", '><img src="a.png" alt="" width="1" height="1"></a>', "has no name"),
        ('href="#main"', 'href="b.html"', "no link to the text"),
        ('<main id="main">', "<main>", "no link to the text"),
        ('type="search" name="q"', 'type="text"', "no search field"),
        ("<button", '<button tabindex="2"', "tabindex 2"),
        ("b.html#two", "c.html", "c.html leads nowhere"),
        ("b.html#two", "b.html#three", "b.html#three leads to no anchor"),
        ("b.html#two", "#three", "#three leads to no anchor"),
        ("<h3>", '<h3 id="one">', "'one' is used 2 times"),
        ("_static/book.css", "https://example.org/a.css", "loads https://example.org/a.css"),
        ('src="a.png"', 'src="//example.org/a.png"', "loads //example.org/a.png from another"),
        ('src="a.png"', 'src="b.png"', "loads b.png, which is not there"),
    ],
)
def test_a_broken_page_is_found(book, old, new, fault):
    page = book / "a.html"
    assert old in page.read_text()
    page.write_text(page.read_text().replace(old, new, 1))
    found = list(pages.faults(pages.find(book)))
    assert any(fault in line and line.startswith("a.html: ") for line in found), found


def test_a_style_sheet_that_calls_another_host_is_found(book):
    (book / "_static" / "book.css").write_text(CSS + "p { background: url('//example.org/x.png') }")
    assert any(
        "book.css loads //example.org/x.png" in fault for fault in pages.faults(pages.find(book))
    )


def test_a_page_is_weighed_with_all_that_it_loads(book, monkeypatch):
    noise = random.Random(0).randbytes(3000)
    (book / "a.png").write_bytes(noise)
    (book / "font.woff2").write_bytes(noise)
    (book / "font.ttf").write_bytes(noise)
    face = "@font-face { src: url(../font.woff2?v=1) format('woff2'), url(../font.ttf) }"
    sheet = book / "_static" / "book.css"
    sheet.write_text(CSS + face)
    page = pages.Page(book.resolve() / "a.html")
    files = {path.name for path in pages.loads(page)}
    assert files == {"a.html", "book.css", "a.png", "font.woff2"}
    pages.travelling.cache_clear()
    weight = sum(map(pages.travelling, pages.loads(page)))
    assert 6000 < weight < 6000 + len(sheet.read_text()) + len(page.path.read_text())
    monkeypatch.setattr(pages, "HEAVIEST", weight)
    assert list(pages.check_weight(page)) == []
    monkeypatch.setattr(pages, "HEAVIEST", weight - 1)
    assert "the heaviest are" in next(pages.check_weight(page))


def test_text_travels_compressed_and_pictures_as_they_are(tmp_path):
    for name in ("a.css", "a.png"):
        (tmp_path / name).write_text("0" * 10_000)
    assert pages.travelling(tmp_path / "a.css") < 100
    assert pages.travelling(tmp_path / "a.png") == 10_000


def test_mathematics_is_weighed_where_there_is_some(book):
    mathjax = book / "_static" / "mathjax"
    (mathjax / "fonts").mkdir(parents=True)
    for name in ("tex.js", "fonts/Main.woff"):
        (mathjax / name).write_text("x")
    path = book.resolve() / "a.html"
    text = path.read_text().replace("</head>", '<script src="_static/mathjax/tex.js"></script>')
    path.write_text(text)
    assert {"tex.js", "Main.woff"}.isdisjoint(p.name for p in pages.loads(pages.Page(path)))
    path.write_text(text.replace("<h3>", '<span class="math">x</span><h3>'))
    assert {"tex.js", "Main.woff"} <= {p.name for p in pages.loads(pages.Page(path))}


@pytest.mark.parametrize(
    ("text", "ground", "expected"),
    # Published examples: black on white; the greys that just pass and just fail AA on white.
    [
        ("#000", "#ffffff", 21),
        ("#fff", "#fff", 1),
        ("#767676", "#fff", 4.54),
        ("#777", "#fff", 4.48),
    ],
)
def test_contrast_is_that_of_wcag(text, ground, expected):
    assert pages.contrast(text, ground) == pytest.approx(expected, abs=0.005)
    assert pages.contrast(ground, text) == pages.contrast(text, ground)


@pytest.mark.parametrize(
    ("added", "fault"),
    [
        ('html[data-theme="dark"] { --pst-color-link: #555 }', "dark: link (#555)"),
        ("html[data-theme=light]{--pst-color-text-muted:#999}", "light: text-muted (#999)"),
        ('html[data-theme="light"] .highlight .c { color: #aaa }', "light: code .c (#aaa)"),
        ('html[data-theme="light"] { --book-tint: #888 }', "light: text-base"),
    ],
)
def test_pale_text_is_found(added, fault):
    assert list(pages.check_contrast(CSS)) == []
    assert any(line.startswith(fault) for line in pages.check_contrast(CSS + added))


def test_a_later_rule_wins_and_variables_are_followed():
    css = "html[data-theme=dark],html[data-theme=light]{--a:#111;--b:var(--a)} .x{--a:#222}"
    assert pages.variables(css, "dark") == {"--a": "#111", "--b": "#111"}
    later = 'html[data-theme="light"] { --a: #333; }'
    assert pages.variables(css + later, "light") == {"--a": "#333", "--b": "#333"}
    assert pages.variables(css + later, "dark")["--b"] == "#111"
