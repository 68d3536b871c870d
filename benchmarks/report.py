"""Rows, targets and sections of the benchmark, as an aligned table and as JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_ROOT = Path(__file__).parents[1]
_CPUS = Path("/proc/cpuinfo")
HEADER = ("contender", "runs", "time s", "cpu s", "peak MB", "speed-up", "difference", "")


@dataclass(frozen=True)
class Row:
    """One contender. `difference` is None where nothing was there to compare with.

    A difference above `tolerance` is a disagreement; without a tolerance it is only shown. `size`
    is what a growth is measured against.
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
    device: str = "cpu"
    size: int | None = None

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
class Growth:
    """The powers of a size that a contender's time and memory follow, fitted and counted.

    None where too little was measured. `stopped_after`: the size at which it took too much.
    """

    name: str
    device: str
    symbol: str
    time: float | None
    time_counted: float | None
    memory: float | None
    memory_counted: float | None
    stopped_after: int | None


@dataclass(frozen=True)
class Section:
    """Contenders for one and the same answer; `versions` of what runs in other environments."""

    key: str
    title: str
    threads: int
    rows: list[Row]
    targets: list[Target]
    versions: dict[str, str] = field(default_factory=dict)
    growth: list[Growth] = field(default_factory=list)

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
    lines += map(_growth, section.growth)
    lines += [f"  target: {t.text}: {t.measured} -> {_VERDICT[t.met]}" for t in section.targets]
    return "\n".join(lines)


def cores() -> int:
    """Those that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Where and when: nothing that names the machine or its user."""
    packages = (
        "torch", "numpy", "scipy", "transformers", "curvlinops-for-pytorch", "entk-helpers"
    )  # fmt: skip
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "tree": _tree(),
        "processor": _processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": cores(),
        "load": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in packages},
    }


def machine_line(where: dict[str, Any]) -> str:
    """One line of it, for the table."""
    versions = ", ".join(f"{name} {value}" for name, value in where["versions"].items())
    return (
        f"{where['cores']} cores ({where['processor']}, {where['system']}), load {where['load']} at the start "
        f"(with other programs at work, times are too long); {versions}; {where['date']}"
    )


def save(path: Path, where: dict[str, Any], settings: dict, sections: Sequence[Section]) -> None:
    """Write all of it as JSON, whole or not at all."""
    versions = where["versions"] | {n: v for s in sections for n, v in s.versions.items()}
    where = where | {"versions": versions}
    content = where | {"settings": settings, "sections": [asdict(s) for s in sections]}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


_VERDICT = {True: "met", False: "MISSED", None: "not judged at this size"}


def _growth(of: Growth) -> str:
    powers = {"time": (of.time, of.time_counted), "memory": (of.memory, of.memory_counted)}
    parts = [
        f"{what} {of.symbol}^{fitted:.2f} (by count {of.symbol}^{counted:.2f})"
        for what, (fitted, counted) in powers.items()
        if fitted is not None
    ]
    if of.stopped_after is not None:
        parts.append(f"stopped after {of.symbol} = {of.stopped_after:,}")
    return f"  growth of {_on(of.name, of.device)}: {', '.join(parts) or 'too little to be fitted'}"


def _on(name: str, device: str) -> str:
    return name if device == "cpu" else f"{name} ({device})"


def _cells(row: Row) -> tuple[str, ...]:
    wrong = "" if row.agrees else "DISAGREES "
    return (
        _on(row.name, row.device),
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


def _processor() -> str:
    """The model, where the system tells it."""
    lines = _CPUS.read_text().splitlines() if _CPUS.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown"


def _tree() -> str:
    """Git's name of the package as it is measured, with "+" where files differ from it.

    It stays the same where commits are put together, and `git ls-tree HEAD` shows today's.
    """
    git = ["git", "-C", str(_ROOT)]
    try:
        head = [*git, "rev-parse", "--short=12", "HEAD:entk_helpers"]
        changed = [*git, "status", "--porcelain", "entk_helpers"]
        found = [
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            for command in (head, changed)
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found[0] + "+" * bool(found[1])


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return "not installed"
