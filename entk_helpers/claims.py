"""A claim of the paper, checked by a cell and kept.

Each chapter opens one ledger and records in it what the paper says, what our runs measured over
seeds, and the verdict. The ledger is a small JSON file under `book/claims/`, so that a page of the
book can later list every claim without running anything.

    ledger = Ledger("03_tms")
    ledger.record(
        "cliff-at-50",
        statement="The spectrum drops after eigenvalue 50",
        source="arXiv 2510.00468v2, figure 1, row 1",
        published="a drop at 50",
        measured={"ratio after 50": ratios},
        verdict="holds",
        why="the largest ratio of the spectrum in every seed",
    )
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import SupportsFloat

from .storage import write_text

VERDICTS = ("holds", "holds in part", "does not hold", "could not be run here")

_SLUG = re.compile(r"[a-z0-9]+(?:[-_.][a-z0-9]+)*")


def verdict(holds: bool, in_part: bool = False) -> str:
    """One of the first three `VERDICTS`, from what was found: all of a claim, or some of it.

    Examples:
        >>> verdict(True), verdict(False, in_part=True), verdict(False)
        ('holds', 'holds in part', 'does not hold')
    """
    return VERDICTS[0] if holds else VERDICTS[1] if in_part else VERDICTS[2]


def _rounded(number: float) -> float:
    """Four significant digits: what a reader needs, and no more than a rerun reproduces."""
    return float(f"{number:.4g}")


@dataclass(frozen=True)
class Measured:
    """One quantity over seeds: every value, and their summary.

    `sd` is the sample standard deviation (n - 1), None for a single value.

    Examples:
        >>> print(Measured.over("ratio", [1.0, 2.0, 3.0]))
        ratio: 2 ± 1 over 3 seeds (1 to 3)
    """

    name: str
    values: tuple[float, ...]
    mean: float
    sd: float | None
    min: float
    max: float

    @classmethod
    def over(cls, name: str, numbers: Iterable[SupportsFloat]) -> Measured:
        """Summarise `numbers`, one per seed: floats, booleans or one-element tensors."""
        values = [float(number) for number in numbers]
        bad = [value for value in values if not math.isfinite(value)]
        if not values or bad:
            raise ValueError(
                f"measured{f'[{name!r}]' if name else ''} must hold finite numbers, one per seed; "
                f"got {f'{bad[0]} among {len(values)} values' if bad else 'none at all'}. "
                "Record the seeds that ran, or the verdict 'could not be run here' without numbers"
            )
        return cls(
            name=name,
            values=tuple(map(_rounded, values)),
            mean=_rounded(statistics.fmean(values)),
            sd=_rounded(statistics.stdev(values)) if len(values) > 1 else None,
            min=_rounded(min(values)),
            max=_rounded(max(values)),
        )

    @property
    def summary(self) -> str:
        """Mean, spread and number of values, as text."""
        if self.sd is None:
            return f"{self.mean:.4g} (one value)"
        if self.min == self.max:
            return f"{self.mean:.4g} in all of {len(self.values)} seeds"
        return (
            f"{self.mean:.4g} ± {self.sd:.2g} over {len(self.values)} seeds "
            f"({self.min:.4g} to {self.max:.4g})"
        )

    def __str__(self) -> str:
        return f"{self.name}: {self.summary}" if self.name else self.summary


@dataclass(frozen=True)
class Claim:
    """What the paper says, what we measured, and the verdict; shown in a notebook as a table."""

    id: str
    statement: str
    source: str
    published: str
    measured: tuple[Measured, ...]
    verdict: str
    why: str
    unit: str
    link: str

    def __str__(self) -> str:
        ours = "; ".join(map(str, self.measured)) or "not measured"
        return f"{self.id}: {self.verdict}. Published: {self.published}. Ours: {ours}. {self.why}"

    def _repr_markdown_(self) -> str:
        rows = [("published", self.published)]
        rows += [(m.name or "ours", m.summary) for m in self.measured]
        cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
        table = "\n".join(f"| {name} | {value} |" for name, value in cells)
        # The anchor is plain HTML, so that the same text shows well in Jupyter and in the book.
        return (
            f'<a id="claim-{self.id}"></a>\n\n'
            f"**Claim.** {self.statement} *({self.source})*\n\n"
            f"| quantity | value{f' [{self.unit}]' if self.unit else ''} |\n|---|---|\n{table}\n\n"
            f"**Verdict: {self.verdict}.** {self.why}\n"
        )


class Ledger:
    """The claims of one chapter, written to `book/claims/<chapter>.json` as they are recorded.

    A ledger starts empty and leaves the file of an earlier run alone until its first record, which
    replaces it: a claim that the chapter no longer makes is then gone. Each write is one atomic
    replacement of the file, so that an interrupted run leaves a whole file behind.

    `folder` defaults to the environment's ENTK_CLAIMS_DIR, else to `book/claims` of the checkout
    around the working directory, else of the one that this package lies in.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     claim = Ledger("03_tms", folder).record(
        ...         "cliff", statement="There is a cliff", source="figure 1", published="after 50",
        ...         measured=[50, 50], verdict="holds", why="It is so in both seeds.",
        ...     )
        >>> print(claim)
        cliff: holds. Published: after 50. Ours: 50 in all of 2 seeds. It is so in both seeds.
    """

    def __init__(self, chapter: str, folder: str | os.PathLike[str] | None = None):
        self.chapter = _slug("chapter", chapter)
        self.path = Path(folder or _claims_folder()) / f"{self.chapter}.json"
        self.claims: dict[str, Claim] = {}

    def record(
        self,
        id: str,
        *,
        statement: str,
        source: str,
        published: str | float,
        measured: Iterable[SupportsFloat] | Mapping[str, Iterable[SupportsFloat]],
        verdict: str,
        why: str,
        unit: str = "",
    ) -> Claim:
        """Keep one claim and write the ledger; returns the claim, which a notebook shows.

        Args:
            id: a slug, unique in the chapter; the page gets the anchor `claim-<id>`.
            statement: what the paper claims, in our words.
            source: where the paper says so (version, section or figure).
            published: the paper's number or finding.
            measured: our numbers, one per seed; or a mapping from names to such sequences.
            verdict: one of `VERDICTS`; "could not be run here" alone may come without numbers.
            why: one sentence that gives the reason for the verdict.
            unit: of the numbers, if they have one.

        Raises:
            ValueError: for an id used twice, an unknown verdict, an empty text, or numbers that
                are missing, NaN or infinite. Nothing is written then.
        """
        if _slug("id", id) in self.claims:
            raise ValueError(
                f"id {id!r} is already in the ledger of {self.chapter!r}; give each claim its own, "
                f"or make a new Ledger when you run the chapter again. Taken: {sorted(self.claims)}"
            )
        if verdict not in VERDICTS:
            raise ValueError(f"verdict must be one of {', '.join(VERDICTS)}; got {verdict!r}")
        texts = {
            "statement": statement,
            "source": source,
            "published": f"{published:.4g}" if isinstance(published, float) else str(published),
            "why": why,
        }
        for name, text in texts.items():
            if not text.strip():
                raise ValueError(f"{name} must say something; got {text!r} for claim {id!r}")
        series = measured if isinstance(measured, Mapping) else {"": measured}
        values = {name: list(numbers) for name, numbers in series.items()} or {"": []}
        if verdict == VERDICTS[-1] and not any(values.values()):
            values = {}
        claim = Claim(
            id=id,
            measured=tuple(Measured.over(name, numbers) for name, numbers in values.items()),
            verdict=verdict,
            unit=unit,
            link=f"notebooks/{self.chapter}.html#claim-{id}",
            **texts,
        )
        self.claims[id] = claim
        self._write()
        return claim

    def __repr__(self) -> str:
        return f"Ledger({self.chapter!r}): {len(self.claims)} claims in {self.path.name}"

    def _write(self) -> None:
        content = {"chapter": self.chapter, "claims": [asdict(c) for c in self.claims.values()]}
        text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        write_text(self.path, text)


def _slug(name: str, text: str) -> str:
    if not _SLUG.fullmatch(text):
        raise ValueError(
            f"{name} must be a slug of small letters, digits and single '-', '_' or '.', such as "
            f"'cliff-at-50'; got {text!r}"
        )
    return text


def _claims_folder() -> Path:
    if folder := os.environ.get("ENTK_CLAIMS_DIR"):
        return Path(folder)
    for root in (Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parents[1]):
        if (root / "_toc.yml").is_file() and (root / "book").is_dir():
            return root / "book" / "claims"
    raise ValueError(
        f"folder: no book (_toc.yml beside book/) around {Path.cwd()}; run inside a checkout, pass "
        "folder=..., or set ENTK_CLAIMS_DIR"
    )
