"""The picture of the package follows its imports, and imports that break the order are found."""

from itertools import pairwise

import architecture
import pytest

FILES = {
    "__init__.py": '"""The package."""\n\nfrom .kernel import ntk\n',
    "inputs.py": '"""What callers pass in."""\n',
    "jacobian.py": '"""Gradients."""\n\nfrom .inputs import take\n',
    "kernel.py": '"""Kernels."""\n\nfrom .inputs import take\nfrom .jacobian import jacobian\n',
    "plotting.py": '"""Figures."""\n',
    "language/__init__.py": '"""Language."""\n\nfrom .text import windows\n',
    "language/text.py": '"""Windows."""\n\nimport entk_helpers.inputs\n',
    "language/study.py": (
        '"""A study."""\n\nfrom ..kernel import ntk\nfrom .text import windows\n\n\n'
        "def figure():\n    from .. import plotting\n"
    ),
    "testbeds/__init__.py": '"""Test beds."""\n\n\nclass Run:\n    """A run."""\n',
    "testbeds/tms.py": '"""A toy."""\n\nfrom entk_helpers.inputs import take\n\nfrom . import Run\n',
}


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "entk_helpers" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    picture = tmp_path / architecture.PICTURE
    picture.parent.mkdir(parents=True)
    picture.write_text(architecture.draw(architecture.read(tmp_path)))
    return tmp_path


def test_imports_are_read_in_every_spelling(root):
    modules = architecture.read(root)
    assert {name: (set(m.imports), set(m.later)) for name, m in modules.items()} == {
        "inputs": (set(), set()),
        "jacobian": ({"inputs"}, set()),
        "kernel": ({"inputs", "jacobian"}, set()),
        "plotting": (set(), set()),
        "language.text": ({"inputs"}, set()),
        "language.study": ({"kernel", "language.text"}, {"plotting"}),
        "testbeds.__init__": (set(), set()),
        "testbeds.tms": ({"inputs", "testbeds.__init__"}, set()),
    }
    assert modules["kernel"].purpose == "Kernels."


def test_an_arrow_that_follows_from_others_is_left_out(root):
    _, edges = architecture.boxes(architecture.read(root))
    assert edges == {
        ("jacobian", "inputs"): False,
        ("kernel", "jacobian"): False,
        ("language.text", "inputs"): False,
        ("language.study", "kernel"): False,
        ("language.study", "language.text"): False,
        ("language.study", "plotting"): True,
        ("testbeds.tms", "inputs"): False,
        ("testbeds.tms", "testbeds"): False,
    }


def test_a_sound_package_with_its_picture_passes(root):
    assert list(architecture.check(root)) == []


@pytest.mark.parametrize(
    ("file", "line", "fault"),
    [
        ("kernel.py", "from .plotting import style", "kernel imports plotting"),
        ("jacobian.py", "from .kernel import ntk", "jacobian imports kernel, which comes after"),
        ("jacobian.py", "def f():\n    from . import kernel", "in a circle: jacobian -> kernel"),
        ("language/text.py", "from .study import run", "in a circle: language.study -> "),
        ("testbeds/tms.py", "from ..kernel import ntk", "test beds import no kernel code"),
        ("language/text.py", "from .. import ntk", "__init__, which only passes names on"),
        ("kernel.py", "import entk_helpers.testbeds.tms", "kernel imports testbeds.tms"),
    ],
)
def test_imports_against_the_order_are_found(root, file, line, fault):
    with (root / "entk_helpers" / file).open("a") as source:
        source.write(f"\n{line}\n")
    assert fault in "\n".join(architecture.check(root))


def test_a_module_without_a_place_is_found(root):
    (root / "entk_helpers" / "novel.py").write_text('"""New."""\n')
    assert "novel has no place in ORDER" in next(architecture.check(root))


def test_a_picture_that_is_not_of_these_imports_is_found(root):
    with (root / "entk_helpers" / "testbeds" / "tms.py").open("a") as source:
        source.write("\nfrom ..language.text import windows\n")
    assert "make architecture" in next(architecture.check(root))
    (root / architecture.PICTURE).unlink()
    assert "make architecture" in next(architecture.check(root))


def test_arrows_point_down_and_boxes_keep_apart():
    modules = architecture.read()
    groups, edges = architecture.boxes(modules)
    for group in architecture.GROUPS:
        own = {name for name, of in groups.items() if of == group}
        inside = {pair: later for pair, later in edges.items() if pair[0] in own}
        rows = architecture.rows_of(own, inside)
        height = {name: row for row, names in enumerate(rows) for name in names}
        assert all(height[start] > height[end] for start, end in inside)
        middle, _ = architecture.lay_out(rows, inside)
        for row in rows:
            sides = [(middle[n], architecture.box_width(n) / 2) for n in row]
            sides.sort()
            assert sides[0][0] - sides[0][1] >= 0 and sum(sides[-1]) <= architecture.WIDTH
            for (x, half), (next_x, next_half) in pairwise(sides):
                assert next_x - next_half - (x + half) > 0


def test_the_page_gets_a_row_for_each_module_with_its_first_line(root):
    text = architecture.table(architecture.read(root))
    assert "| `kernel` | Kernels. | `inputs`, `jacobian` |" in text.split("\n")
    assert text.count("\n") == 1 + 8
    source = [f"# A\n\n{architecture.TABLE}\n"]
    architecture.fill_table(None, "book/architecture", source)
    assert "| `inputs` |" in source[0] and architecture.TABLE not in source[0]
