"""Rows, targets and sections of the benchmark, as an aligned table and as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

HEADER = ("contender", "runs", "time s", "cpu s", "peak MB", "speed-up", "difference", "")


@dataclass(frozen=True)
class Row:
    """One contender. `difference` is None where nothing was there to compare with.

    A difference above `tolerance` is a disagreement; without a tolerance it is only shown.
    """

    name: str
    seconds: float
    runs: int = 0
    cpu_seconds: float | None = None
    peak_mb: float | None = None
    speed_up: float | None = None
    difference: float | None = None
    tolerance: float | None = None
    note: str = ""

    @property
    def agrees(self) -> bool:
        """False for a NaN, too."""
        if self.difference is None or self.tolerance is None:
            return True
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class Target:
    """What was aimed at and what came out; at tiny sizes (`met` None) it is not judged."""

    text: str
    measured: str
    met: bool | None


@dataclass(frozen=True)
class Section:
    """Contenders for one and the same answer; `versions` of what runs in other environments."""

    key: str
    title: str
    threads: int
    rows: list[Row]
    targets: list[Target]
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def disagreements(self) -> list[str]:
        """Contenders whose answer is not the reference's."""
        return [row.name for row in self.rows if not row.agrees]


def table(section: Section) -> str:
    """The section as plain text: title, aligned columns, targets."""
    cells = [HEADER, *map(_cells, section.rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEADER))]
    plural = "s" if section.threads > 1 else ""
    lines = [f"({section.key}) {section.title}; {section.threads} thread{plural}"]
    lines += ["  " + _aligned(row, widths) for row in cells]
    lines += [f"  target: {t.text}: {t.measured} -> {_VERDICT[t.met]}" for t in section.targets]
    return "\n".join(lines)


def cores() -> int:
    """Those that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Where and when: nothing that names the machine or its user."""
    packages = ("torch", "numpy", "scipy", "entk-helpers")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": cores(),
        "load": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in packages},
    }


def machine_line(where: dict[str, Any]) -> str:
    """One line of it, for the table."""
    versions = ", ".join(f"{name} {value}" for name, value in where["versions"].items())
    return (
        f"{where['cores']} cores ({where['system']}), load {where['load']} at the start "
        f"(with other programs at work, times are too long); {versions}; {where['date']}"
    )


def save(path: Path, where: dict[str, Any], settings: dict, sections: Sequence[Section]) -> None:
    """Write all of it as JSON, whole or not at all."""
    versions = where["versions"] | {n: v for s in sections for n, v in s.versions.items()}
    where = where | {"versions": versions}
    content = where | {"settings": settings, "sections": [asdict(s) for s in sections]}
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


_VERDICT = {True: "met", False: "MISSED", None: "not judged at this size"}


def _cells(row: Row) -> tuple[str, ...]:
    wrong = "" if row.agrees else "DISAGREES "
    return (
        row.name,
        str(row.runs or "-"),
        _digits(row.seconds),
        _digits(row.cpu_seconds),
        "-" if row.peak_mb is None else f"{row.peak_mb:,.0f}",
        "-" if row.speed_up is None else _digits(row.speed_up, 1) + "x",
        "-" if row.difference is None else f"{row.difference:.1e}",
        wrong + row.note,
    )


def _digits(value: float | None, decimals: int = 3) -> str:
    if value is None:
        return "-"
    return f"{value:,.{decimals}f}" if value < 100 else f"{value:,.0f}"


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *middle, last = row
    padded = [c.rjust(w) for c, w in zip(middle, widths[1:-1], strict=True)]
    return "  ".join([first.ljust(widths[0]), *padded, last]).rstrip()


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return "not installed"
