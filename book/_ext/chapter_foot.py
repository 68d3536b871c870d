"""The foot of a chapter: how, where and when its outputs were computed.

The book is built from executed notebooks, so Sphinx knows nothing of their runs. The notebook's
own metadata does (key `entk`, written by book/_tools/chapters.py): this extension appends it to the
page as a last cell. The notebook on disk, which readers download, stays as it is.
"""

from __future__ import annotations

import json
import time
from pathlib import PurePosixPath
from typing import Any

LIBRARIES = {"python": "Python", "torch": "PyTorch", "numpy": "NumPy", "scipy": "SciPy"}


def duration(seconds: float) -> str:
    """A time as people say it: '8 s', '2 min 05 s'."""
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{max(whole, 1)} s"


def foot(record: dict[str, Any], docname: str) -> str:
    """The Markdown of the foot, from the notebook's record of its run."""
    name = PurePosixPath(docname).name
    versions = ", ".join(
        f"{label} {record['versions'][key]}"
        for key, label in LIBRARIES.items()
        if key in record["versions"]
    )
    device = record["device"].upper() if record["device"] in ("cpu", "cuda") else record["device"]
    threads = f"{record['threads']} thread{'s' if record['threads'] != 1 else ''}"
    day = time.strptime(record["executed"], "%Y-%m-%d")
    date = f"{day.tm_mday} {time.strftime('%B %Y', day)}"
    return (
        ":::{div} chapter-foot\n"
        f"Every number and figure on this page was computed by its code, in "
        f"**{duration(record['seconds'])}** on {device} with {threads}, on {date}, "
        f"with {versions}. To run it yourself, take the {{download}}`notebook <{name}.ipynb>` or "
        f"its {{download}}`source <{name}.py>`.\n"
        ":::"
    )


def append_foot(app: Any, docname: str, source: list[str]) -> None:
    """Sphinx's `source-read`: add the foot to a notebook that has a record of its run."""
    if app.env.doc2path(docname, base=False).endswith(".ipynb"):
        notebook = json.loads(source[0])
        if record := notebook["metadata"].get("entk"):
            text = foot(record, docname)
            cell = {"cell_type": "markdown", "id": "chapter-foot", "metadata": {}, "source": text}
            notebook["cells"].append(cell)
            source[0] = json.dumps(notebook)


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("source-read", append_foot)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
