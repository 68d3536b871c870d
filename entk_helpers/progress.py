"""Progress bars that show in a terminal and leave no trace in a notebook's page."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def progress_bar(total: int, label: str, *, show: bool = True) -> Iterator[tqdm]:
    """A tqdm bar written to the terminal itself; silent where there is none.

    A notebook captures stdout and stderr into the page, so neither is used. The
    environment's ENTK_PROGRESS names another terminal (a notebook's kernel has none of its
    own; the book's commands pass theirs on), or is "off".

    Examples:
        >>> with progress_bar(3, "training", show=False) as bar:
        ...     for _ in range(3):
        ...         bar.update()
        ...     print(bar.disable)
        True
    """
    where = os.environ.get("ENTK_PROGRESS", "/dev/tty")
    try:
        terminal = open(where, "w") if show and where != "off" else None  # noqa: SIM115
    except OSError:
        terminal = None
    try:
        with tqdm(
            total=total, desc=label, file=terminal, disable=terminal is None, leave=False
        ) as bar:
            yield bar
    finally:
        if terminal is not None:
            terminal.close()
