"""The pages of the package, `book/api/`: docstrings as they were meant, and ways to the chapters.

autodoc reads a docstring as reStructuredText, but ours are plain text that must read well in a
terminal too. So names in backticks become links or code here, indented formulas stay as they are,
and bars are bars. Under each entry comes where the chapters use it, found in their sources: the
package knows no chapter, and nobody keeps a list.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any, NamedTuple

ENTRY = re.compile(r"^\.\. auto(?:function|class|exception|data):: (entk_helpers[\w.]+)$", re.M)
HEADING = re.compile(r"# (#{1,6}) +(\S.*)")


# ---------------------------------------------------------------------------- entries and chapters


def entries(text: str) -> list[str]:
    """The full names of all that a page documents."""
    return ENTRY.findall(text)


class Use(NamedTuple):
    """A heading of a chapter, under which a name is first used there."""

    chapter: str
    heading: str
    is_title: bool


def uses(source: str) -> dict[str, tuple[str, bool]]:
    """The heading under which a chapter first uses each name of the package, and if it is the title.

    The cells under the title, which draw the picture of the answer, count where there is no other.
    """
    tree = ast.parse(source)
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("entk_helpers")
        for alias in node.names
    }
    headings = [
        (number, *match.groups())
        for number, line in enumerate(source.split("\n"), 1)
        if (match := HEADING.fullmatch(line))
    ]
    found: dict[str, tuple[bool, int, str]] = {}
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) if name in imported:
                full = imported[name]
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in imported:
                full = f"{imported[name]}.{attribute}"
            case _:
                continue
        above = [(len(level), text) for line, level, text in headings if line < node.lineno]
        level, text = above[-1]
        use = (level == 1, node.lineno, text)
        found[full] = min(use, found.get(full, use))
    return {name: (text, is_title) for name, (is_title, _, text) in found.items()}


def used_in(folder: Path) -> dict[str, list[Use]]:
    """Where the chapters in a folder use each name, chapter by chapter."""
    found: dict[str, list[Use]] = {}
    for path in sorted(folder.glob("[0-9]*_*.py")):
        for name, place in uses(path.read_text(encoding="utf-8")).items():
            found.setdefault(name, []).append(Use(path.stem, *place))
    return found


# ---------------------------------------------------------------------------- docstrings


def to_rst(lines: list[str], own: set[str], known: dict[str, str]) -> list[str]:
    """A docstring as reStructuredText that shows what its author wrote.

    `own` are names of parameters and fields, `known` leads from other names to what they link to.
    """
    out: list[str] = []
    field = literal = False
    for number, line in enumerate(lines):
        if line == "Examples:":
            return out + lines[number:]
        indent = len(line) - len(line.lstrip())
        after_blank = not out or not out[-1].strip()
        if not line.strip():
            field = False
        elif indent and after_blank and (literal or not out[-2].startswith(" ")):
            if not literal:
                out += ["::", ""]  # a formula
            literal = True
        elif not indent:
            literal = False
            described = re.match(r"((?:\w+, )*\w+): ", line)
            if described and set(described[1].split(", ")) <= own:
                if not field and not after_blank:
                    out.append("")
                field = True
                line = f"- `{described[1].replace(', ', '`, `')}`: {line[described.end() :]}"
            elif field:
                line = f"  {line}"
        out.append(line if literal else inline(line, own, known))
    return out


def inline(line: str, own: set[str], known: dict[str, str]) -> str:
    """One line of prose: names in backticks become links or code, and bars are only bars."""

    def piece(text: str) -> str:
        if text.startswith("``"):
            return text
        if text.startswith("`"):
            name = text.strip("`")
            return f":py:obj:`~{known[name]}`" if name in known and name not in own else f"`{text}`"
        return re.sub(r"\||(?<=\w)_(?!\w)|(?<!\S)\*(?=\S[^*]*$)", r"\\\g<0>", text)

    return "".join(map(piece, re.split(r"(``.+?``|`[^`]+`)", line)))


def signature_of(obj: Any, known: dict[str, str]) -> str:
    """The signature as the source has it: shapes as text, names of the package as links."""
    from sphinx.util.inspect import stringify_signature

    written = inspect.signature(obj)
    parameters = [p for name, p in written.parameters.items() if name not in ("self", "cls")]
    returns = inspect.Signature.empty if inspect.isclass(obj) else written.return_annotation
    written = written.replace(parameters=parameters, return_annotation=returns)
    text = stringify_signature(written, unqualified_typehints=True)
    text = text.replace("<factory>", "...")  # or Sphinx cannot parse it
    text = re.sub(r"(?<=[\"']) (?=\w+[\"'])", "", text)  # jaxtyping's blank before one dimension
    links = "|".join(map(re.escape, known))
    return re.sub(
        rf"\"[^\"]*\"|'[^']*'|(?<![\w.~])(?:{links})(?![\w=:])",
        lambda found: f"~{known[found[0]]}" if found[0] in known else found[0],
        text,
    )


# ---------------------------------------------------------------------------- Sphinx


def read_pages(app: Any) -> None:
    """Sphinx's `builder-inited`: what the pages document, and where the chapters use it."""
    pages = sorted(Path(app.srcdir, "book", "api").glob("*.md"))
    app.api_entries = [name for page in pages for name in entries(page.read_text("utf-8"))]
    app.api_uses = used_in(Path(app.srcdir, "notebooks"))


def known_to(name: str, full_names: list[str]) -> dict[str, str]:
    """What a docstring means by a short name: its own namespace's, the package's, or a class."""
    known = {}
    for full in full_names:
        space, _, short = full.rpartition(".")
        near = space == "entk_helpers" or name.startswith(f"{space}.")
        if full != name and (near or short[0].isupper()):
            known[short] = full
    return known


def process_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: Any
) -> tuple[str, None] | None:
    """Sphinx's `autodoc-process-signature`."""
    if not callable(obj):
        return None
    return signature_of(obj, known_to(name, app.api_entries)), None


def process_docstring(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Sphinx's `autodoc-process-docstring`, before napoleon reads the sections."""
    own = set(inspect.signature(obj).parameters) if callable(obj) else set()
    lines[:] = to_rst(lines, own, known_to(name, app.api_entries))


def skip_member(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Sphinx's `autodoc-skip-member`: the docstring of a named tuple tells of its fields."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def append_uses(app: Any, domain: str, objtype: str, content: Any) -> None:
    """Sphinx's `object-description-transform`: under an entry, links to the chapters' sections."""
    from docutils import nodes
    from myst_parser.mdit_to_docutils.base import default_slugify
    from sphinx import addnodes

    name = content.parent[0].get("ids", [""])[0] if domain == "py" else ""
    found = app.api_uses.get(name)
    if not found:
        return
    items = nodes.bullet_list()
    for use in found:
        chapter, section = (
            addnodes.pending_xref(
                refdomain="doc",
                reftype="myst",
                refdoc=app.env.docname,
                reftarget=f"notebooks/{use.chapter}",
                reftargetid=target,
                refexplicit=False,
            )
            for target in (None, default_slugify(use.heading))
        )
        parts = [section] if use.is_title else [chapter, nodes.Text(": "), section]
        items += nodes.list_item("", nodes.paragraph("", "", *parts))
    content += nodes.container("", nodes.paragraph("", "Used in"), items, classes=["api-uses"])


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("builder-inited", read_pages)
    app.connect("autodoc-process-signature", process_signature)
    app.connect("autodoc-process-docstring", process_docstring, priority=400)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("object-description-transform", append_uses)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
