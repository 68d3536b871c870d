"""Draw the package in one picture, from its imports, and keep the imports in their order.

    python book/_tools/architecture.py          write book/_static/architecture.svg
    python book/_tools/architecture.py check    the picture is current, and arrows point one way

As a Sphinx extension it writes the table of modules into book/architecture.md: what each is for,
from the first line of its docstring, and what it imports.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "entk_helpers"
PICTURE = "book/_static/architecture.svg"
TABLE = "<!-- the table of modules -->"
# A module may import those before it. A new one gets its place here.
ORDER = (
    *("inputs", "mode", "progress", "storage", "device", "operations"),
    *("problem", "jacobian", "structure", "kernel", "operator", "spectrum"),
    *("rotation", "alignment", "features", "closed_form", "infinite_width", "regression"),
    *("claims", "plotting", "language", "testbeds"),
)
# Test beds train networks; what the book says about their kernels must not come from there.
TESTBEDS_MAY = {"inputs", "mode", "progress", "storage", "language"}
GROUPS = {"": "the mathematics", "language": "language models", "testbeds": "test beds"}
COLOURS = {
    "": ("#e4eff7", "#0072B2"),
    "language": ("#fbeadf", "#B04A00"),
    "testbeds": ("#e2f3ec", "#00694d"),
}
WIDTH, MARGIN, BOX, STEP, GAP, LETTER = 1060, 24, 34, 84, 15, 9.4


@dataclass(frozen=True)
class Module:
    """One file of the package."""

    name: str  # below the package: "language.text"
    purpose: str
    imports: frozenset[str]
    later: frozenset[str] = field(default=frozenset())  # imported inside a function only

    @property
    def group(self) -> str:
        """The subpackage that holds it, or ''."""
        head = self.name.split(".")[0]
        return head if head in GROUPS else ""


def read(root: Path = ROOT) -> dict[str, Module]:
    """The modules by name. What a package's `__init__` only passes on counts as no module."""
    folder = root / PACKAGE
    trees = {
        ".".join(path.relative_to(folder).with_suffix("").parts): ast.parse(path.read_text("utf-8"))
        for path in sorted(folder.rglob("*.py"))
    }
    found = {}
    for name, tree in trees.items():
        inner = set(ast.walk(tree)) - {n for s in tree.body for n in _at_import(s)}
        now, later = set(), set()
        for node in ast.walk(tree):
            targets = set(_targets(node, name, trees)) - {name}
            (later if node in inner else now).update(targets)
        only_passes_on = name.endswith("__init__") and not any(
            isinstance(node, ast.ClassDef | ast.FunctionDef) for node in tree.body
        )
        if not only_passes_on and name != "language.__main__":
            purpose = (ast.get_docstring(tree) or "").split("\n")[0]
            found[name] = Module(name, purpose, frozenset(now), frozenset(later - now))
    return found


def _at_import(statement: ast.stmt) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported."""
    yield statement
    if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        for child in ast.iter_child_nodes(statement):
            yield from _at_import(child)


def _targets(node: ast.AST, name: str, known: dict[str, Any]) -> Iterator[str]:
    """The modules of the package that an import statement in the module `name` names."""
    if isinstance(node, ast.Import):
        bases = [(alias.name.split("."), []) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        above = [PACKAGE, *name.split(".")][: -node.level] if node.level else []
        base = above + (node.module.split(".") if node.module else [])
        bases = [(base, [alias.name for alias in node.names])]
    else:
        return
    for (head, *path), names in bases:
        if head == PACKAGE:
            for path_of in [[*path, each] for each in names] or [path]:
                for candidate in (path_of, [*path_of[:-1], "__init__"], path_of[:-1]):
                    if ".".join(candidate) in known:
                        yield ".".join(candidate)
                        break


# ---------------------------------------------------------------------------- the order


def place(name: str) -> str:
    """The name in ORDER under which a module falls."""
    return name.split(".")[0]


def check_order(modules: dict[str, Module]) -> Iterator[str]:
    """Cycles, arrows against the order, and imports that are ruled out."""
    for module in modules.values():
        if place(module.name) not in ORDER:
            yield f"{module.name} has no place in ORDER (book/_tools/architecture.py); give it one"
            continue
        for other in sorted(module.imports | module.later):
            if other not in modules:
                yield f"{module.name} imports {other}, which only passes names on; name their module"
                continue
            here, there = place(module.name), place(other)
            if there in ORDER and ORDER.index(there) > ORDER.index(here):
                yield f"{module.name} imports {other}, which comes after it"
            if here == "testbeds" != there and there not in TESTBEDS_MAY:
                yield f"{module.name} imports {other}; test beds import no kernel code"
        if "plotting" in module.imports:
            yield f"{module.name} imports plotting; only what draws may, and inside a function"
    if cycle := find_cycle(modules):
        yield f"imports in a circle: {' -> '.join(cycle)}"


def find_cycle(modules: dict[str, Module]) -> list[str]:
    """Modules that import each other, the first one twice; [] if none do."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        """The first circle below `name`, which was reached along `path`."""
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done and name in modules:
            for other in sorted(modules[name].imports | modules[name].later):
                if circle := visit(other, [*path, name]):
                    return circle
            done.add(name)
        return []

    return next((circle for name in sorted(modules) if (circle := visit(name, []))), [])


# ---------------------------------------------------------------------------- the picture

Edges = dict[tuple[str, str], bool]  # from, to: whether imported inside a function only


def node_name(name: str) -> str:
    """The box of a module: the packages of test beds have one each."""
    head, *rest = name.removesuffix(".__init__").split(".")
    return ".".join([head, *rest[:1]])


def boxes(modules: dict[str, Module]) -> tuple[dict[str, str], Edges]:
    """The boxes with their groups, and the arrows that do not follow from others."""
    groups = {node_name(name): module.group for name, module in modules.items()}
    edges: Edges = {}
    for name, module in modules.items():
        for other in sorted((module.imports | module.later) & modules.keys()):
            if (pair := (node_name(name), node_name(other)))[0] != pair[1]:
                edges[pair] = edges.get(pair, True) and other in module.later
    below: dict[str, set[str]] = {}

    def reach(name: str) -> set[str]:
        """All boxes that arrows lead to from this one."""
        if name not in below:
            below[name] = set()
            for start, end in edges:
                if start == name:
                    below[name] |= {end} | reach(end)
        return below[name]

    def follows(start: str, end: str) -> bool:
        """Whether another arrow from `start` leads to `end` too."""
        return any(a == start and b != end and end in reach(b) for a, b in edges)

    return groups, {pair: later for pair, later in edges.items() if not follows(*pair)}


def rows_of(own: set[str], edges: Edges) -> list[list[str]]:
    """Boxes in rows, each above all that it imports; guests of other groups in the lowest."""
    guests = {end for _, end in edges} - own
    height: dict[str, int] = dict.fromkeys(guests, 0)

    def climb(name: str) -> int:
        """The row of a box, from below."""
        if name not in height:
            under = [climb(end) for start, end in edges if start == name]
            height[name] = max(under, default=-1 + bool(guests)) + 1
        return height[name]

    rows: list[list[str]] = [[] for _ in range(max(map(climb, sorted(own))) + 1)]
    for name in sorted(height):
        rows[height[name]].append(name)
    return rows


def lay_out(
    rows: list[list[str]], edges: Edges
) -> tuple[dict[str, float], dict[tuple[str, str], list[str]]]:
    """Middles of the boxes from left to right; arrows past a row get a bend in it.

    Each box moves to the mean of those that it is joined to, row by row, up and down.
    """
    height = {name: row for row, names in enumerate(rows) for name in names}
    bends: dict[tuple[str, str], list[str]] = {}
    for start, end in edges:
        way = [f"{start}>{end}@{row}" for row in range(height[start] - 1, height[end], -1)]
        bends[start, end] = [start, *way, end]
        for row, bend in zip(range(height[start] - 1, height[end], -1), way, strict=True):
            rows[row].append(bend)
    joined: dict[str, list[str]] = {name: [] for row in rows for name in row}
    for way in bends.values():
        for a, b in pairwise(way):
            joined[a].append(b)
            joined[b].append(a)
    middle = {n: (i + 0.5) * WIDTH / len(row) for row in rows for i, n in enumerate(row)}
    for turn in range(40):
        for row in rows if turn % 2 else rows[::-1]:
            wish = {
                n: sum(middle[m] for m in joined[n]) / len(joined[n]) if joined[n] else middle[n]
                for n in row
            }
            row.sort(key=lambda name: (wish[name], name))
            _spread(row, wish, middle)
    sides = [middle[n] + sign * box_width(n) / 2 for n in middle for sign in (-1, 1)]
    shift = (WIDTH - min(sides) - max(sides)) / 2
    return {name: x + shift for name, x in middle.items()}, bends


def box_width(name: str) -> float:
    """Of a box with its name; a bend takes little room."""
    return 10 if "@" in name else LETTER * len(name.split(".")[-1]) + 24


def _spread(row: list[str], wish: dict[str, float], middle: dict[str, float]) -> None:
    """Put a row where it wishes to be on the whole, without overlaps, within the picture."""
    right = -float("inf")
    for name in row:
        middle[name] = max(wish[name], right + GAP + box_width(name) / 2)
        right = middle[name] + box_width(name) / 2
    shift = sum(wish[name] - middle[name] for name in row) / len(row)
    right = float(MARGIN)
    for name in row:
        middle[name] = max(middle[name] + shift, right + box_width(name) / 2)
        right = middle[name] + box_width(name) / 2 + GAP
    left = float(WIDTH - MARGIN)
    for name in reversed(row):
        middle[name] = min(middle[name], left - box_width(name) / 2)
        left = middle[name] - box_width(name) / 2 - GAP


def draw(modules: dict[str, Module]) -> str:
    """The picture, as SVG text: one band for each group, arrows from a module to what it imports."""
    groups, edges = boxes(modules)
    parts, top = [], 0
    for group, title in GROUPS.items():
        own = {name for name, of in groups.items() if of == group}
        inside = {pair: later for pair, later in edges.items() if pair[0] in own}
        rows = rows_of(own, inside)
        middle, bends = lay_out(rows, inside)
        floor = top + 50 + STEP * (len(rows) - 1)
        y = {name: floor - STEP * row for row, names in enumerate(rows) for name in names}
        parts.append(
            f'<text x="{MARGIN}" y="{top + 30}" font-weight="bold" fill="{COLOURS[group][1]}">{title}</text>'
        )
        for pair, way in sorted(bends.items()):
            parts.append(_arrow([(middle[name], y[name]) for name in way], inside[pair]))
        for name in sorted(own | {end for _, end in inside}):
            parts.append(_box(name, middle[name], y[name], groups[name], guest=name not in own))
        top = floor + BOX + 26
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="17" fill="#222">\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0 8 4 0 8z" fill="#555"/></marker></defs>\n'
        f'<rect width="{WIDTH}" height="{top}" fill="#fff" rx="6"/>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def _arrow(points: list[tuple[float, float]], later: bool) -> str:
    """A line down from a box, past the rows between, to the upper edge of another."""
    (x, y), *rest = points
    path = f"M{x:.0f} {y + BOX:.0f}"
    y += BOX
    for index, (to_x, to_y) in enumerate(rest):
        half = (y + to_y) / 2
        path += f"C{x:.0f} {half:.0f} {to_x:.0f} {half:.0f} {to_x:.0f} {to_y - 1:.0f}"
        x, y = to_x, to_y
        if index < len(rest) - 1:
            path += f"V{to_y + BOX:.0f}"
            y = to_y + BOX
    dashes = ' stroke-dasharray="5 4"' if later else ""
    return f'<path d="{path}" fill="none" stroke="#555" stroke-width="1.3" marker-end="url(#tip)"{dashes}/>'


def _box(name: str, middle: float, top: float, group: str, guest: bool) -> str:
    """A box with the last part of its name; a dashed one for a guest of another group."""
    fill, line = COLOURS[group]
    width = box_width(name)
    dashes = ' stroke-dasharray="3 3"' if guest else ""
    label = escape(name.split(".")[-1])
    return (
        f'<rect x="{middle - width / 2:.0f}" y="{top:.0f}" width="{width:.0f}" height="{BOX}" rx="5" '
        f'fill="{"#fff" if guest else fill}" stroke="{line}"{dashes}/>'
        f'<text x="{middle:.0f}" y="{top + 23:.0f}" text-anchor="middle">{label}</text>'
    )


# ---------------------------------------------------------------------------- the table


def table(modules: dict[str, Module]) -> str:
    """What each module is for and what it imports, in Markdown."""
    lines = ["| module | what it is for | imports |", "|---|---|---|"]
    for module in sorted(modules.values(), key=lambda m: (list(GROUPS).index(m.group), m.name)):
        name = module.name.removesuffix(".__init__")
        others = ", ".join(
            f"`{other.removesuffix('.__init__')}`"
            for other in sorted(module.imports | module.later)
        )
        lines.append(f"| `{name}` | {module.purpose.replace('|', chr(92) + '|')} | {others} |")
    return "\n".join(lines)


def fill_table(app: Any, docname: str, source: list[str]) -> None:
    """Sphinx's `source-read`: put the table where the page asks for it."""
    if TABLE in source[0]:
        source[0] = source[0].replace(TABLE, table(read()))


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("source-read", fill_table)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


# ---------------------------------------------------------------------------- the command


def check(root: Path = ROOT) -> Iterator[str]:
    """All that is amiss: the order of the imports, then the picture."""
    modules = read(root)
    faults = list(check_order(modules))
    yield from faults
    picture = root / PICTURE
    if not faults and (not picture.exists() or picture.read_text("utf-8") != draw(modules)):
        yield f"{PICTURE} is not what the imports say; run `make architecture`"


def main(arguments: list[str]) -> None:
    """Write the picture, or check it."""
    if arguments == ["check"]:
        if found := list(check()):
            raise SystemExit("\n".join(found))
        print("imports: in order, and drawn as they are")
    elif arguments:
        raise SystemExit(__doc__)
    else:
        modules = read()
        if found := list(check_order(modules)):
            raise SystemExit("\n".join(found))
        (ROOT / PICTURE).write_text(draw(modules), "utf-8")
        print(f"{PICTURE}: {len(modules)} modules")


if __name__ == "__main__":
    main(sys.argv[1:])
