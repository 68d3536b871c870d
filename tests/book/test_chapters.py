"""Each check of the book, failing on a broken chapter and passing on a good one.

The chapters here are written by hand, outputs included: only the tests of `execute` and of nbval
start a kernel.
"""

import json
import os
import shutil
import subprocess
import sys

import chapters
import nbformat
import pytest

SOURCE = """\
# %% [markdown]
# # A title
#
# ## A section

# %% tags=["nbval-check-output"]
from entk_helpers.count import answer

print(answer())

# %% mystnb={"figure": {"name": "fig-one", "caption": "A line."}, "image": {"alt": "ALT"}}
answer()
""".replace("ALT", "A line that rises from 0 to 1")
PACKAGE = '''\
"""A module."""


def answer():
    """The answer."""
    return 42  # of course
'''
PNG = "iVBORw0KGgo="


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def commit(chapter):
    """Write the notebook that running SOURCE would have left, stamped."""
    notebook = chapters.convert(chapter)
    first, second = (c for c in notebook.cells if c.cell_type == "code")
    first.execution_count, second.execution_count = 1, 2
    first.outputs = [nbformat.v4.new_output("stream", name="stdout", text="42\n")]
    picture = nbformat.v4.new_output("execute_result", {"image/png": PNG}, execution_count=2)
    second.outputs = [picture]
    claims = chapters._claims_digest(chapter.claims)
    notebook.metadata["entk"] = {"stamp": chapters.stamp(chapter), "claims": claims}
    chapter.notebook.write_text(nbformat.writes(notebook))


@pytest.fixture
def chapter(tmp_path):
    """A good chapter in a checkout of its own."""
    write(tmp_path / "notebooks" / "01_one.py", SOURCE)
    write(tmp_path / "entk_helpers" / "__init__.py", "")
    write(tmp_path / "entk_helpers" / "count.py", PACKAGE)
    write(tmp_path / "notebooks" / "data" / "01_one" / "numbers.csv", "1,2\n")
    write(tmp_path / "book" / "page.md", "# A page\n\nWords.\n")
    (chapter,) = chapters.find(tmp_path)
    commit(chapter)
    return chapter


def faults(chapter):
    return "\n".join(chapters.check_book(chapter.root))


def edit(chapter, change):
    """Change the committed notebook behind its source's back."""
    notebook = nbformat.read(chapter.notebook, as_version=4)
    change(notebook)
    chapter.notebook.write_text(nbformat.writes(notebook))


def test_a_good_chapter_has_no_faults(chapter):
    assert faults(chapter) == ""
    assert chapters.state(chapter) == "fresh"


# ---- the pair


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("A section", "Another section", "cell 1: the text differs"),
        ("A line.", "Another line.", "cell 3: the metadata differs"),
        ('tags=["nbval-check-output"]', "", "cell 2: the metadata differs"),
        ("# %% [markdown]\n# # A title", "# %%\n# # A title", "cell 1: the kind differs"),
    ],
)
def test_a_drifted_pair_is_found(chapter, old, new, message):
    assert old in SOURCE
    write(chapter.source, SOURCE.replace(old, new))
    assert message in faults(chapter)


def test_a_notebook_edited_by_hand_is_found(chapter):
    def change(notebook):
        notebook.cells[1].source += "\nprint('more')"

    edit(chapter, change)
    assert "cell 2: the text differs" in faults(chapter)


def test_missing_and_added_cells_are_found(chapter):
    edit(chapter, lambda notebook: notebook.cells.pop(0))
    assert "2 cells where the .py has 3" in faults(chapter)
    chapter.notebook.unlink()
    assert "01_one.ipynb is missing" in faults(chapter)


def test_a_notebook_without_source_is_found(chapter):
    shutil.copy(chapter.notebook, chapter.notebook.with_name("02_two.ipynb"))
    assert "notebooks/02_two.ipynb belongs to no chapter" in faults(chapter)


def test_cells_that_did_not_change_keep_their_ids(chapter):
    before = [cell.id for cell in chapters.convert(chapter).cells]
    write(chapter.source, SOURCE.replace("print(answer())", "print(answer() + 1)"))
    after = [cell.id for cell in chapters.convert(chapter).cells]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_equal_cells_get_ids_of_their_own(chapter):
    write(chapter.source, SOURCE + "\n# %%\nanswer()\n")
    ids = [cell.id for cell in chapters.convert(chapter).cells]
    assert len(set(ids)) == len(ids) == 4


# ---- the stamp


def test_changed_code_makes_a_chapter_stale(chapter):
    write(chapter.source, SOURCE.replace("print(answer())", "print(answer() + 1)"))
    assert "the outputs are stale" in faults(chapter)
    assert chapters.state(chapter) == "stale"


@pytest.mark.parametrize("new", ["return 43  # of course", "return 40 + 2", "return 42.0"])
def test_a_changed_imported_module_makes_a_chapter_stale(chapter, new):
    package = chapter.root / "entk_helpers" / "count.py"
    write(package, PACKAGE.replace("return 42  # of course", new))
    assert "the outputs are stale" in faults(chapter)


def test_a_new_or_renamed_module_makes_a_chapter_stale(chapter):
    package = chapter.root / "entk_helpers"
    (package / "count.py").rename(package / "counting.py")
    assert "the outputs are stale" in faults(chapter)


def test_a_new_page_of_the_package_makes_a_chapter_stale(chapter):
    write(chapter.root / "entk_helpers" / "explorer.html", "<div></div>\n")
    assert "the outputs are stale" in faults(chapter)


def test_changed_data_make_a_chapter_stale(chapter):
    write(chapter.root / "notebooks" / "data" / "01_one" / "numbers.csv", "1,3\n")
    assert "the outputs are stale" in faults(chapter)


def test_data_of_another_chapter_do_not(chapter):
    write(chapter.root / "notebooks" / "data" / "02_two" / "numbers.csv", "1,3\n")
    assert faults(chapter) == ""


def test_comments_docstrings_and_layout_of_the_package_do_not(chapter):
    text = PACKAGE.replace("# of course", "# why not").replace("The answer.", "An answer.")
    write(chapter.root / "entk_helpers" / "count.py", "# head\n" + text.replace("42", "(42)"))
    assert faults(chapter) == ""


def test_a_stamp_edited_by_hand_is_found(chapter):
    edit(chapter, lambda notebook: notebook.metadata.entk.update(stamp="0" * 64))
    assert "the outputs are stale" in faults(chapter)


def test_new_prose_keeps_the_outputs(chapter):
    write(chapter.source, SOURCE.replace("A section", "New words").replace("A line.", "A caption."))
    assert chapters.state(chapter) == "text"
    chapters.renew_text(chapter)
    assert faults(chapter) == ""
    assert "42" in chapter.notebook.read_text()


# ---- what a reader would see


def outputs(chapter, *new):
    def change(notebook):
        notebook.cells[1].outputs = list(new)

    edit(chapter, change)


def test_stderr_in_a_page_is_found(chapter):
    outputs(chapter, nbformat.v4.new_output("stream", name="stderr", text="UserWarning: no"))
    assert "cell 2 writes to stderr" in faults(chapter)


def test_an_error_in_a_page_is_found(chapter):
    outputs(chapter, nbformat.v4.new_output("error", ename="KeyError", evalue="x", traceback=[]))
    assert "cell 2 ends in an error: KeyError: x" in faults(chapter)


@pytest.mark.parametrize("counts", [(2, 1), (1, 3), (None, None), (1, 1)])
def test_cells_run_out_of_order_are_found(chapter, counts):
    def change(notebook):
        for cell, count in zip(notebook.cells[1:], counts, strict=True):
            cell.execution_count = count

    edit(chapter, change)
    assert "not run top to bottom" in faults(chapter)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"A line that rises from 0 to 1"', '"A line"', "alt text is too short"),
        (', "image": {"alt": "A line that rises from 0 to 1"}', "", "alt text is too short"),
        (', "caption": "A line."', "", "a figure without caption"),
        ('"name": "fig-one", ', "", "a figure without name"),
    ],
)
def test_a_figure_needs_caption_name_and_alt_text(chapter, old, new, message):
    assert old in SOURCE
    write(chapter.source, SOURCE.replace(old, new))
    chapters.renew_text(chapter)
    assert message in faults(chapter)


def test_two_chapters_may_not_share_the_name_of_a_figure(chapter):
    write(chapter.root / "notebooks" / "02_two.py", SOURCE)
    for each in chapters.find(chapter.root):
        commit(each)
    assert "02_two: figure name 'fig-one' is taken by 01_one" in faults(chapter)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# A\n\n### B", "heading 'B' jumps from level 1 to 3"),
        ("## A", "opens with its one title"),
        ("# A\n\n# B", "opens with its one title"),
        ("# A\n\n![](a.png)", "picture 'a.png' needs an alt text"),
        ("# A\n\n![short](a.png)", "picture 'a.png' needs an alt text"),
        ('# A\n\n<img src="a.png">', "needs an alt text"),
        ("# A\n\n```{figure} a.png\n:name: fig-a\nCaption.\n```", "picture 'a.png' needs ':alt:'"),
        ("# A\n\n:::{image} a.png\n:alt: short\n:::", "picture 'a.png' needs ':alt:'"),
    ],
)
def test_pages_with_bad_headings_or_silent_pictures_are_found(chapter, text, message):
    write(chapter.root / "book" / "part" / "page.md", text + "\n")
    assert message in faults(chapter)


@pytest.mark.parametrize(
    "text",
    [
        "# A\n\n## B\n\n### C\n\n## D",
        "# A\n\n```python\n# not a heading\n### nor this\n```",
        "# A\n\n![A line that rises to one](a.png)",
        '# A\n\n<img src="a.png" alt="A line that rises to one">',
        "# A\n\n```{figure} a.png\n:name: fig-a\n:alt: A line that rises to one\nCaption.\n```",
        "# A\n\nWrite `![](a.png)` or\n\n```md\n![](a.png)\n```",
    ],
)
def test_good_pages_pass(text):
    assert list(chapters.check_markdown(text)) == []


# ---- claims


def ledger(folder, verdict="holds", name="cliff", source="figure 1", mean=1.0):
    claim = {"id": name, "source": source, "verdict": verdict, "measured": [{"mean": mean}]}
    write(folder / "01_one.json", json.dumps({"chapter": "01_one", "claims": [claim]}))


def test_committed_claims_edited_by_hand_are_found(chapter):
    folder = chapter.root / "book" / "claims"
    ledger(folder)
    commit(chapter)
    assert faults(chapter) == ""
    ledger(folder, verdict="does not hold")
    assert "book/claims holds other claims" in faults(chapter)
    assert chapters.state(chapter) == "stale"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdict": "does not hold"}, "came out as figure 1 / does not hold; committed: figure 1"),
        ({"source": "figure 2"}, "came out as figure 2 / holds"),
        ({"name": "other"}, "claim 'cliff' is committed, but no cell recorded it"),
        ({"name": "other"}, "claim 'other' was recorded, but is not in book/claims"),
    ],
)
def test_a_claim_that_came_out_otherwise_is_found(tmp_path, change, message):
    ledger(tmp_path / "kept")
    ledger(tmp_path / "now", **change)
    assert message in "\n".join(chapters.compare_claims(tmp_path / "now", tmp_path / "kept"))


def test_equal_verdicts_pass_though_numbers_differ(tmp_path):
    ledger(tmp_path / "kept")
    ledger(tmp_path / "now", mean=1.1)
    assert list(chapters.compare_claims(tmp_path / "now", tmp_path / "kept")) == []


def test_claims_of_no_chapter_are_found(chapter):
    ledger(chapter.root / "book" / "claims")
    old = chapter.root / "book" / "claims" / "01_one.json"
    old.rename(old.with_name("09_gone.json"))
    assert "book/claims/09_gone.json belongs to no chapter" in faults(chapter)


# ---- running, with a kernel


def test_running_writes_a_clean_notebook_and_its_claims(chapter):
    write(
        chapter.source,
        "# %% [markdown]\n# # A title\n\n# %%\n"
        "import os\nfrom pathlib import Path\n"
        "print(Path.cwd())\n"
        "claims = Path(os.environ['ENTK_CLAIMS_DIR'], '01_one.json')\n"
        "claims.write_text('{\"claims\": []}');\n",
    )
    chapters.execute(chapter)
    assert faults(chapter) == ""
    assert chapter.claims.exists()
    text = chapter.notebook.read_text()
    assert str(chapter.root) not in text
    assert '"notebooks\\n"' in text
    record = nbformat.read(chapter.notebook, as_version=4).metadata.entk
    assert set(record) >= {"stamp", "claims", "seconds", "executed", "device", "threads"}
    assert set(record.versions) == {"python", "torch", "numpy", "scipy"}
    assert [path.name for path in chapter.source.parent.glob("*.part")] == []


@pytest.mark.parametrize(
    "code", ["import sys; print('no', file=sys.stderr)", "1 / 0"], ids=["stderr", "error"]
)
def test_a_bad_run_leaves_the_old_notebook(chapter, code):
    before = chapter.notebook.read_text()
    write(chapter.source, f"# %% [markdown]\n# # A title\n\n# %%\n{code}\n")
    with pytest.raises(SystemExit, match=r"stderr|ZeroDivisionError"):
        chapters.run([chapter], only_stale=True)
    assert chapter.notebook.read_text() == before


def test_nbval_catches_a_printed_number_that_changed(chapter):
    bad = chapter.notebook.with_name("02_two.ipynb")
    shutil.copy(chapter.notebook, bad)
    bad.write_text(bad.read_text().replace('"42\\n"', '"43\\n"'))
    plain = ["-p", "no:python", "-p", "no:cacheprovider"]
    command = ["-m", "pytest", "-q", *plain, "--nbval-lax", "--nbval-current-env"]
    result = subprocess.run(
        [sys.executable, *command, "--rootdir=.", "notebooks"],
        cwd=chapter.root,
        env=os.environ | {"PYTHONPATH": str(chapter.root)},
        capture_output=True,
        text=True,
    )
    assert "1 failed, 3 passed" in result.stdout
    assert "02_two" in result.stdout.split("short test summary")[1]


# ---- the command


def test_the_command_line(chapter, monkeypatch, capsys):
    monkeypatch.setattr(chapters.find, "__defaults__", (chapter.root, None))
    monkeypatch.setattr(chapters.check_book, "__defaults__", (chapter.root,))
    monkeypatch.setattr(chapters, "ROOT", chapter.root)
    chapters.main(["check"])
    chapters.main(["stale"])
    assert capsys.readouterr().out.count("\n") == 1
    write(chapter.source, SOURCE.replace("A section", "New words"))
    chapters.main(["stale"])
    assert capsys.readouterr().out == "01_one: text\n"
    with pytest.raises(SystemExit, match="1"):
        chapters.main(["check"])
    chapters.main(["run"])
    assert "text renewed" in capsys.readouterr().out
    chapters.main(["check"])
    with pytest.raises(SystemExit, match="no chapter '07_none'; there are: 01_one"):
        chapters.main(["run", "07_none"])
