"""Run a command, unless nothing in the checkout changed since it last passed.

    python book/_tools/once.py test -- make checks
    FORCE=1 python book/_tools/once.py test -- make checks

A SHA-256 over all files that are not generated is kept in `_build/.passed-<name>`, and only when
the command ended well. Times of files do not matter, so a fresh clone or a switched branch is
judged by its content.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

GENERATED = {"_build", "__pycache__"}


def fingerprint(root: Path) -> str:
    """One hash over the names and contents of all files, hidden and generated ones left out."""
    digest = hashlib.sha256(sys.version.encode())
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(
            name
            for name in folders
            if name not in GENERATED
            and not name.endswith(".egg-info")
            and (name == ".ci" or not name.startswith("."))
        )
        for name in sorted(files):
            path = Path(folder, name)
            if path.is_file() and path.suffix not in (".part", ".pyc"):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{path.relative_to(root)}\0{content}\n".encode())
    return digest.hexdigest()


def once(name: str, command: list[str], root: Path, force: bool = False) -> int:
    """The command's exit status; 0 at once where it passed on the same files before."""
    mark = root / "_build" / f".passed-{name}"
    now = fingerprint(root)
    if not force and mark.exists() and mark.read_text().split()[0] == now:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(mark.stat().st_mtime))
        print(f"make {name}: passed on {when}, and nothing has changed since.")
        print(f"To do it all again: make {name} FORCE=1")
        return 0
    mark.unlink(missing_ok=True)
    status = subprocess.run(command, cwd=root).returncode
    if status == 0:
        # The hash from before the run: what changed meanwhile was perhaps not seen by it.
        mark.parent.mkdir(exist_ok=True)
        mark.write_text(now + "\n")
    return status


if __name__ == "__main__":
    label, separator, *words = sys.argv[1:]
    if separator != "--" or not words:
        raise SystemExit(__doc__)
    checkout = Path(__file__).resolve().parents[2]
    try:
        raise SystemExit(once(label, words, checkout, force=bool(os.environ.get("FORCE"))))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
