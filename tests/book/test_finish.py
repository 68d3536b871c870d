"""The last touch to built pages mends each fault, and touches nothing twice."""

from types import SimpleNamespace

import finish
import pytest
from docutils.core import publish_doctree
from PIL import Image

SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 300 120.4"/>'


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
    (tmp_path / "b.svg").write_text(SVG)
    return tmp_path


def test_pictures_get_their_size_and_those_below_wait(folder):
    html = '<img class="logo" src="b.svg"/><img alt="x" src="a.png" /><p><img src="b.svg"></p>'
    sized = finish.size_pictures(html, folder)
    assert sized == (
        '<img class="logo" src="b.svg" width="300" height="120" />'
        '<img alt="x" src="a.png" width="640" height="480" decoding="async" />'
        '<p><img src="b.svg" width="300" height="120" decoding="async" loading="lazy" /></p>'
    )
    assert finish.size_pictures(sized, folder) == sized


def test_pictures_elsewhere_are_left_alone(folder):
    html = '<img src="https://example.org/a.png"><img src="data:image/png;base64,AA==">'
    assert finish.size_pictures(html, folder) == html


def test_an_svg_without_a_size_is_an_error(folder):
    (folder / "c.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    with pytest.raises(ValueError, match=r"c\.svg has no viewBox"):
        finish.size_pictures('<img src="c.svg">', folder)


def test_scripts_without_use_are_dropped_and_others_kept():
    kept = '<script src="../_static/scripts/bootstrap.js"></script>'
    dropped = (
        '<script defer src="../_static/scripts/fontawesome.js?digest=5"></script>'
        '<script async="async" src="../_static/sphinx-thebe.js?v=c"></script>'
        '<link rel="stylesheet" href="../_static/sphinx-thebe.css?v=4" />'
        '<script>const THEBE_JS_URL = "https://example.org/x.js"; const y = 1</script>'
        "<script type=\"text/x-thebe-config\">\n{a: 1}\n</script><script>kernelName = 'p'</script>"
    )
    assert finish.drop_scripts(dropped + kept) == kept


def test_the_copy_for_printing_loses_its_headings_only():
    html = '<div id="jb-print-docs-body"><h1>T</h1><h2> Contents </h2></div><article><h1>T</h1></article>'
    assert finish.one_title(html) == (
        '<div id="jb-print-docs-body"><p class="h1">T</p><p class="h2"> Contents </p></div>'
        "<article><h1>T</h1></article>"
    )
    assert finish.one_title("<h1>T</h1>") == "<h1>T</h1>"


def test_names_are_what_is_seen():
    assert finish.plain_names('<th class="head"><p></p></th>') == '<td class="head"></td>'
    assert finish.plain_names('<th class="head"><p>a</p></th>') == '<th class="head"><p>a</p></th>'
    button = '<button class="btn search-button-field x" aria-label="Search" title="Search">'
    assert "aria-label" not in finish.plain_names(button)
    assert "aria-label" in finish.plain_names(button.replace("search-button-field", "other"))


def test_ids_of_exercises_become_classes():
    html = '<section id="exercise-content"><section id="exercise-contents">'
    assert (
        finish.own_ids(html) == '<section class="exercise-content"><section id="exercise-contents">'
    )


def test_a_finished_page_is_finished(folder):
    html = '<script src="a/fontawesome.js"></script><h1>T</h1><img src="a.png"><img src="b.svg">'
    once = finish.finish(html, folder)
    assert "fontawesome" not in once and once.count("width=") == 2
    assert finish.finish(once, folder) == once


SHORT = "Too short."
PLAIN = "A trained network knows something about its data, which its gradients show."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PLAIN, PLAIN),
        (f"{PLAIN} We ask :math:`K`. It ends.", PLAIN),
        (f"We ask :math:`a`. {PLAIN}", PLAIN),
        (f"{SHORT}\n\n{PLAIN}", PLAIN),
        (f"* {PLAIN}", ""),
        (f"{PLAIN} See Fig. 3 for it.", PLAIN),
        (PLAIN[:-1].replace(",", ". And") * 4 + ".", None),
    ],
)
def test_a_description_is_plain_and_neither_long_nor_short(text, expected):
    settings = {"doctitle_xform": False}  # as Sphinx has it
    found = finish.description(publish_doctree(f"A\n=\n\n{text}", settings_overrides=settings))
    if expected is None:
        assert finish.DESCRIPTION[0] <= len(found) <= finish.DESCRIPTION[1]
    else:
        assert found == expected


def test_each_page_gets_one_description():
    app = SimpleNamespace(config=SimpleNamespace(html_title="The book"))
    context = {"title": "A &amp; B", "metatags": "<meta/>"}
    finish.describe(app, "a", "page.html", context, None)
    expected = '<meta/>\n<meta name="description" content="A &amp; B, The book" />'
    assert context["metatags"] == expected


@pytest.mark.parametrize("address", ["", "https://example.org/book"])
def test_the_address_alone_turns_the_buttons_on(tmp_path, address):
    (tmp_path / "_config.yml").write_text(f'repository: {{url: "{address}", branch: main}}')
    config = SimpleNamespace(html_theme_options={"other": 1})
    finish.show_buttons(SimpleNamespace(srcdir=tmp_path), config)
    shown = {"repository_url": address, "repository_branch": "main"}
    shown |= dict.fromkeys(finish.BUTTONS, True)
    assert config.html_theme_options == {"other": 1, **(shown if address else {})}
