"""The page "Does it replicate?": every claim of the book, from the records of the chapters.

`book/claims/*.json` holds what was claimed, published and measured, `book/statements.yml` which
claims check which statement of the paper. The directive `{ledger} paper` shows those of the paper
in its order, `{ledger} beyond` the others, `{ledger} summary` one square a claim. A statement
without a claim, and a claim of the paper without a statement, are warnings, so that the strict
build fails.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml
from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

BOOK = Path(__file__).parents[1]
SIGNS = {"holds": "✓", "holds in part": "~", "does not hold": "✗", "could not be run here": "?"}
BEYOND = "Beyond the paper"
AT_ONCE = 3  # quantities shown before the reader asks for more
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A claim, and the statement of the paper that it checks (`where` is empty for our own)."""

    claim: dict[str, Any]
    part: str
    where: str = ""
    says: str = ""

    @property
    def chapter(self) -> str:
        """The file's stem: `03_tms`."""
        return Path(self.claim["link"].partition("#")[0]).stem

    @property
    def number(self) -> int:
        """The chapter's."""
        return int(self.chapter.partition("_")[0])

    @property
    def key(self) -> str:
        """As in the list of statements: `03_tms#cliff-at-50`."""
        return f"{self.chapter}#{self.claim['id']}"

    @property
    def is_papers(self) -> bool:
        """Whether the claim is the paper's own, by its source."""
        return self.claim["source"].startswith("arXiv")


def read(book: Path = BOOK) -> tuple[list[Entry], list[str]]:
    """All claims, the paper's in its order and then the others, and what is wrong with the list."""
    files = sorted((book / "claims").glob("*.json"))
    claims = [claim for file in files for claim in json.loads(file.read_text("utf-8"))["claims"]]
    left = {(entry := Entry(claim, BEYOND)).key: entry for claim in claims}
    known, listed, faults = set(left), [], []
    for part in yaml.safe_load((book / "statements.yml").read_text("utf-8")):
        for statement in part["statements"]:
            name = f"statement {statement['where']!r} ({statement['says']})"
            if not statement["claims"]:
                faults.append(f"{name} has no claim that checks it")
            for key in statement["claims"]:
                if entry := left.pop(key, None):
                    place = part["part"], statement["where"], statement["says"]
                    listed.append(Entry(entry.claim, *place))
                else:
                    why = "is listed twice" if key in known else "is recorded by no chapter"
                    faults.append(f"{name}: claim {key!r} {why}")
    for entry in [*listed, *left.values()]:
        if entry.is_papers != bool(entry.where):
            faults.append(
                f"claim {entry.key!r} with the source {entry.claim['source']!r} "
                + ("checks no statement" if entry.is_papers else "is not the paper's")
                + " in book/statements.yml"
            )
    return [*listed, *left.values()], faults


def tally(entries: Iterable[Entry]) -> dict[str, int]:
    """How many claims have each verdict, in the order of `SIGNS`."""
    counts = Counter(entry.claim["verdict"] for entry in entries)
    return {verdict: counts[verdict] for verdict in SIGNS}


def summary(measured: dict[str, Any]) -> str:
    """Mean, spread and number of values, as text."""
    name, n = measured["name"], len(measured["values"])
    text = f"{measured['mean']:.4g}"
    if measured["sd"] is None:
        text += " (one value)"
    else:
        text += f" ± {measured['sd']:.2g}, {n} seeds" if measured["sd"] else f", all {n} seeds"
    return f"{name}: {text}" if name else text


class LedgerDirective(SphinxDirective):
    """`{ledger} paper`, `{ledger} beyond` or `{ledger} summary`."""

    required_arguments = 1
    HEAD: ClassVar = ("In the paper", "Claim, and what was published", "Measured here", "Verdict")

    def run(self) -> list[nodes.Node]:
        """The nodes of one of the three."""
        for file in (BOOK / "claims").glob("*.json"):
            self.env.note_dependency(str(file))
        self.env.note_dependency(str(BOOK / "statements.yml"))
        entries, faults = read()
        if self.arguments[0] == "summary":
            for fault in faults:
                logger.warning(fault, location=self.get_location())
            return [self._squares(entries)]
        paper = self.arguments[0] == "paper"
        return [self._table([entry for entry in entries if bool(entry.where) == paper], paper)]

    def _squares(self, entries: list[Entry]) -> nodes.Node:
        """One line a part, one square a claim, and the counts."""
        rows = []
        for part in dict.fromkeys(entry.part for entry in entries):
            some = [entry for entry in entries if entry.part == part]
            counts = ", ".join(f"{n} {SIGNS[verdict]}" for verdict, n in tally(some).items() if n)
            links = [
                self._link(entry, SIGNS[entry.claim["verdict"]], entry.claim["statement"])
                for entry in some
            ]
            squares = nodes.paragraph("", "", *links, classes=["ledger-squares"])
            name, count = nodes.paragraph(text=part), nodes.paragraph(text=counts)
            rows.append(([name], [squares], [count]))
        return self._grid(("part", "one square a claim", "count"), rows, "ledger-summary")

    def _table(self, entries: list[Entry], paper: bool) -> nodes.Node:
        rows = [self._row(entry) for entry in entries]
        head = self.HEAD if paper else ("Chapter", "Claim", *self.HEAD[2:])
        classes = [_class(entry.claim["verdict"]) for entry in entries]
        return self._grid(head, rows, "ledger", classes)

    def _row(self, entry: Entry) -> tuple[list[nodes.Node], ...]:
        claim = entry.claim
        name = entry.says or f"Chapter {entry.number}"
        first = [nodes.paragraph("", "", nodes.strong(text=name))]
        said = [self._text(claim["statement"])]
        if entry.where:
            first.append(nodes.paragraph(text=entry.where))
            said.append(self._text(f"*Published:* {claim['published']}"))
        lines = [self._text(summary(measured)) for measured in claim["measured"]]
        more = nodes.container("", *lines[AT_ONCE:], classes=["ledger-more"])
        ours = lines[:AT_ONCE] + ([more] if lines[AT_ONCE:] else [])
        badge = nodes.paragraph(
            "", "", nodes.inline(text=f"{SIGNS[claim['verdict']]} {claim['verdict']}"),
            classes=["ledger-badge"],
        )  # fmt: skip
        cell = nodes.paragraph("", "", self._link(entry, f"its cell in chapter {entry.number}"))
        why = [badge, self._text(claim["why"]), cell]
        return first, said, ours or [nodes.paragraph(text="not measured")], why

    def _text(self, text: str) -> nodes.Node:
        found, messages = self.parse_inline(text)
        return nodes.paragraph("", "", *found, *messages)

    def _link(self, entry: Entry, text: str, title: str = "") -> nodes.Node:
        verdict = _class(entry.claim["verdict"])
        target = f"../{entry.claim['link']}"
        link = nodes.reference(text=text, refuri=target, internal=True, classes=[verdict])
        if title:
            link["reftitle"] = f"{entry.claim['verdict']}: {title}"
        return link

    @staticmethod
    def _grid(
        head: Iterable[str], rows: list, kind: str, classes: list[str] | None = None
    ) -> nodes.Node:
        head = list(head)
        group = nodes.tgroup(cols=len(head))
        group += [nodes.colspec(colwidth=1) for _ in head]
        cells = [nodes.entry("", nodes.paragraph(text=text)) for text in head]
        group += nodes.thead("", nodes.row("", *cells))
        body = nodes.tbody()
        for number, row in enumerate(rows):
            cells = [nodes.entry("", *cell) for cell in row]
            body += nodes.row("", *cells, classes=classes[number : number + 1] if classes else [])
        group += body
        return nodes.table("", group, classes=[kind])


def _class(verdict: str) -> str:
    return "verdict-" + verdict.replace(" ", "-")


def add_script(app: Any, pagename: str, templatename: str, context: dict, doctree: Any) -> None:
    """Sorting and filtering, on the page that has a ledger."""
    if doctree and any("ledger" in table["classes"] for table in doctree.findall(nodes.table)):
        app.add_js_file("ledger.js", loading_method="defer")


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_directive("ledger", LedgerDirective)
    app.connect("html-page-context", add_script)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
