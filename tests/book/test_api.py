"""The pages of the package name everything that is public, and its examples run."""

import dataclasses
import doctest
import functools
import importlib
import inspect
import re
from pathlib import Path

import api
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PAGES = {path.name: path.read_text() for path in sorted(ROOT.glob("book/api/*.md"))}
SPACES = [
    "entk_helpers",
    "entk_helpers.testbeds",
    "entk_helpers.testbeds.tms",
    "entk_helpers.testbeds.wide",
    "entk_helpers.testbeds.modular",
    "entk_helpers.testbeds.grammar",
    "entk_helpers.language",
    "entk_helpers.claims",
    "entk_helpers.plotting",
    "entk_helpers.progress",
    "entk_helpers.device",
    "entk_helpers.storage",
]


def public(space):
    """`__all__`, or the functions and classes that a module defines."""
    module = importlib.import_module(space)
    return getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == space
    ]


PUBLIC = {f"{space}.{name}": space for space in SPACES for name in public(space)}


def resolve(name):
    return getattr(importlib.import_module(PUBLIC[name]), name.rpartition(".")[2])


@functools.cache
def returned():
    """The names of classes that something public returns, whose examples show them."""
    found = set()
    for name in PUBLIC:
        value = resolve(name)
        methods = vars(value).values() if inspect.isclass(value) else [value]
        for function in filter(inspect.isfunction, methods):
            annotation = inspect.signature(function).return_annotation
            found |= set(re.findall(r"\w+", inspect.formatannotation(annotation)))
    return found


def faults(docstring, names, needed=True):
    """What is wrong with the examples of a docstring, in which these names are known."""
    test = doctest.DocTestParser().get_doctest(docstring or "", {**names}, "examples", None, 0)
    if needed and not any(example.want for example in test.examples):
        return ["no example whose output is checked"]
    report = []
    doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    return report


# ---- the pages


def test_every_public_name_is_on_exactly_one_page():
    assert sorted(n for text in PAGES.values() for n in api.entries(text)) == sorted(PUBLIC)


@pytest.mark.parametrize("page", PAGES)
def test_every_group_of_entries_leads_to_what_explains_it(page):
    for section in PAGES[page].split("\n## "):
        if api.entries(section):
            assert re.search(r"\]\(\.\./(\.\./notebooks/\d\d_\w+\.ipynb#|how_it_is_made)", section)


def test_the_index_lists_every_page():
    listed = re.findall(r"\]\((\w+\.md)\)", PAGES["index.md"])
    assert sorted(listed) == sorted(set(PAGES) - {"index.md"})


# ---- the examples


@pytest.mark.parametrize("name", PUBLIC)
def test_examples(name):
    value = resolve(name)
    beside = [other for other in PUBLIC if PUBLIC[other] in ("entk_helpers", PUBLIC[name])]
    names = {other.rpartition(".")[2]: resolve(other) for other in beside}
    needed = callable(value) and value.__name__ not in returned()
    assert faults(value.__doc__, {"torch": torch, **names}, needed) == []


@pytest.mark.parametrize(
    ("docstring", "fault"),
    [
        (None, "no example"),
        ("Sums.\n\nExamples:\n    >>> n = 1", "no example"),
        ("Sums.\n\nExamples:\n    >>> 1 + 1\n    3", "Expected:\n    3\nGot:\n    2"),
        ("Sums.\n\nExamples:\n    >>> nobody(1)\n    1", "NameError"),
    ],
)
def test_a_broken_example_fails(docstring, fault):
    assert fault in "".join(faults(docstring, {}))


# ---- the extension

CHAPTER = """# %% [markdown]
# # A title
#
# Words.

# %%
import torch

from entk_helpers import alignment, eigenpairs
from entk_helpers.testbeds import tms

eigenpairs(torch.eye(2))
tms.train(2, 0.5)

# %% [markdown]
# ## A *section*, with `code`

# %%
for pairs in [eigenpairs(torch.eye(3))]:
    tms.train(3, 0.5)

# %% [markdown]
# ### Deeper

# %%
eigenpairs(torch.eye(3))
"""


def test_a_use_is_under_the_first_heading_below_the_title():
    assert api.uses(CHAPTER) == {
        "entk_helpers.eigenpairs": ("A *section*, with `code`", False),
        "entk_helpers.testbeds.tms": ("A *section*, with `code`", False),
        "entk_helpers.testbeds.tms.train": ("A *section*, with `code`", False),
    }
    title_only = CHAPTER.split("# %% [markdown]\n# ##")[0]
    assert api.uses(title_only)["entk_helpers.eigenpairs"] == ("A title", True)


def test_uses_are_collected_by_chapter(tmp_path):
    (tmp_path / "01_one.py").write_text(CHAPTER)
    (tmp_path / "02_two.py").write_text(CHAPTER.replace("eigenpairs", "alignment"))
    (tmp_path / "jupytext.py").write_text("eigenpairs = 1")
    found = api.used_in(tmp_path)
    assert [use.chapter for use in found["entk_helpers.testbeds.tms.train"]] == ["01_one", "02_two"]
    assert [use.chapter for use in found["entk_helpers.alignment"]] == ["02_two"]


@pytest.mark.parametrize(
    ("text", "rst"),
    [
        ("Return |cos| of `x`.", r"Return \|cos\| of ``x``."),
        ("As `match` does, ``a | b``.", "As :py:obj:`~entk_helpers.match` does, ``a | b``."),
        ("`pairs` are its own.", "``pairs`` are its own."),
        ("a:\n\n    b^2 = c_\n\nd_ e", "a:\n\n::\n\n    b^2 = c_\n\nd\\_ e"),
        ("Args:\n    x: |x|", "Args:\n    x: \\|x\\|"),
        (
            "A.\n\nx, y: both,\nof them.\nz: b",
            "A.\n\n- ``x``, ``y``: both,\n  of them.\n- ``z``: b",
        ),
        ("A |b|.\n\nExamples:\n    >>> a | b", "A \\|b\\|.\n\nExamples:\n    >>> a | b"),
    ],
)
def test_docstrings_become_restructured_text(text, rst):
    known = {"match": "entk_helpers.match", "pairs": "entk_helpers.pairs"}
    own = {"x", "y", "z", "pairs"}
    assert api.to_rst(text.split("\n"), own, known) == rst.split("\n")


def test_short_names_are_those_of_the_namespace_and_the_package_and_of_classes():
    full = ["entk_helpers.match", "entk_helpers.testbeds.tms.train", "entk_helpers.language.grade"]
    full += ["entk_helpers.language.Document", "entk_helpers.testbeds.Run"]
    assert set(api.known_to("entk_helpers.match", full)) == {"Document", "Run"}
    assert set(api.known_to("entk_helpers.testbeds.tms.train_seeds", full)) == {
        "match", "train", "Document", "Run"
    }  # fmt: skip


def test_signatures_show_shapes_and_link_names():
    def f(self, K: 'Float[Tensor, " n"]', *, match: "Match | None" = None) -> "list[Match]": ...  # noqa: F821

    assert api.signature_of(f, {"Match": "a.Match", "match": "a.match"}) == (
        '(K: Float[Tensor, "n"], *, match: ~a.Match | None = None) -> list[~a.Match]'
    )


def test_a_default_that_a_factory_makes_leaves_a_signature_that_parses():
    fields = dataclasses.make_dataclass(
        "Fields", [("names", "list[str]", dataclasses.field(default_factory=list))]
    )
    assert api.signature_of(fields, {}) == "(names: list[str] = ...)"
