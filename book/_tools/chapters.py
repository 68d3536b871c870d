"""The chapters of the book: run them, and check that what is committed is what the code says.

A chapter is written in `notebooks/NN_name.py` (jupytext, py:percent). `NN_name.ipynb` beside it is
generated from it, executed and committed, so that the book can be built without running anything.

    python book/_tools/chapters.py stale             list the chapters whose outputs are old
    python book/_tools/chapters.py run --stale       bring exactly those up to date
    python book/_tools/chapters.py run 03_tms        execute one (or --all)
    python book/_tools/chapters.py check             pairs, stamps, outputs, figures, headings
    python book/_tools/chapters.py claims FOLDER     claims just measured against the committed ones

The stamp of a chapter is a SHA-256 over its code cells, the code of `entk_helpers/` and the files
in `notebooks/data/<chapter>/`. Prose, captions, comments in the package and its docstrings are not
in it: where only these changed, `run` renews the text and keeps the outputs.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KEPT_METADATA = ("tags", "mystnb")  # the same two as in notebooks/jupytext.toml
SHORTEST_ALT = 15
FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
LANGUAGE = {
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "pygments_lexer": "ipython3",
}
# Run in the kernel after the last cell: what the foot of the page tells about the run.
PROBE = """
import json, os, platform, sys
from importlib.metadata import PackageNotFoundError, version
versions = {"python": platform.python_version()}
for package in ("torch", "numpy", "scipy"):
    try:
        versions[package] = version(package)
    except PackageNotFoundError:
        pass
torch = sys.modules.get("torch")
cuda = torch is not None and torch.cuda.is_available()
device = os.environ.get("ENTK_DEVICE") or ("cuda" if cuda else "cpu")
if cuda and device.startswith("cuda"):
    device = torch.cuda.get_device_name(torch.device(device))
threads = torch.get_num_threads() if torch else os.cpu_count()
print(json.dumps({"device": device, "threads": threads, "versions": versions}))
"""


@dataclass(frozen=True)
class Chapter:
    """The files of one chapter, by the place of its source."""

    source: Path

    @property
    def name(self) -> str:
        """The file's stem: `03_tms`."""
        return self.source.stem

    @property
    def notebook(self) -> Path:
        """The executed twin."""
        return self.source.with_suffix(".ipynb")

    @property
    def root(self) -> Path:
        """The checkout."""
        return self.source.parents[1]

    @property
    def claims(self) -> Path:
        """The claims that the chapter records, if it does."""
        return self.root / "book" / "claims" / f"{self.name}.json"


def find(root: Path = ROOT, names: list[str] | None = None) -> list[Chapter]:
    """All chapters of the book, or those named; `03_tms`, `notebooks/03_tms.py` are the same."""
    chapters = {p.stem: Chapter(p) for p in sorted((root / "notebooks").glob("[0-9]*_*.py"))}
    wanted = [Path(name).stem for name in names or chapters]
    if unknown := [name for name in wanted if name not in chapters]:
        raise SystemExit(f"no chapter {unknown[0]!r}; there are: {', '.join(chapters) or 'none'}")
    return [chapters[name] for name in wanted]


# ---------------------------------------------------------------------------- the stamp


def canonical(node: Any) -> Any:
    """A syntax tree as nested tuples: without docstrings, positions and empty fields.

    `ast.dump` would do, but its text differs between versions of Python.
    """
    if isinstance(node, list):
        return tuple(map(canonical, node))
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = fields["body"][1:]
    kept = ((key, canonical(value)) for key, value in fields.items() if value not in (None, []))
    return (type(node).__name__, *kept)


def stamp(chapter: Chapter) -> str:
    """SHA-256 over everything that the outputs of a chapter follow from."""
    digest = hashlib.sha256()

    def add(label: str, content: bytes) -> None:
        digest.update(f"{label}\0{len(content)}\0".encode() + content)

    for cell in _read_source(chapter).cells:
        if cell.cell_type == "code":
            add("cell", cell.source.encode())
    for path in _files(chapter.root / "entk_helpers", "*.py"):
        text = path.read_text(encoding="utf-8")
        add(path.relative_to(chapter.root).as_posix(), _code(text).encode())
    for path in _files(chapter.root / "entk_helpers", "*.html"):
        add(path.relative_to(chapter.root).as_posix(), path.read_bytes())
    for path in _files(chapter.root / "notebooks" / "data" / chapter.name, "*"):
        add(path.relative_to(chapter.root).as_posix(), path.read_bytes())
    return digest.hexdigest()


@cache  # ten chapters ask for the same package
def _code(text: str) -> str:
    """What a module does, as text."""
    return repr(canonical(ast.parse(text)))


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.rglob(pattern) if path.is_file())


def _claims_digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


# ---------------------------------------------------------------------------- the pair


def _read_source(chapter: Chapter) -> Any:
    import jupytext

    return jupytext.read(chapter.source)


def _read_notebook(chapter: Chapter) -> Any | None:
    import nbformat

    return nbformat.read(chapter.notebook, as_version=4) if chapter.notebook.exists() else None


def convert(chapter: Chapter) -> Any:
    """The source as a notebook without outputs.

    The id of a cell is made from its content, so that a cell that did not change keeps its id.
    """
    notebook = _read_source(chapter)
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k in KEPT_METADATA}
        content = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:10]
        seen[content] = seen.get(content, 0) + 1
        cell.id = content if seen[content] == 1 else f"{content}-{seen[content]}"
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": LANGUAGE,
        "jupytext": {"formats": "ipynb,py:percent"},
    }
    return notebook


def drift(source: Any, notebook: Any) -> Iterator[str]:
    """Where a notebook says something else than its source, cell by cell."""
    for number, (ours, theirs) in enumerate(zip(source.cells, notebook.cells, strict=False), 1):
        for what, a, b in (
            ("kind", ours.cell_type, theirs.cell_type),
            ("text", ours.source, theirs.source),
            ("metadata", dict(ours.metadata), dict(theirs.metadata)),
            ("id", ours.id, theirs.get("id")),
        ):
            if a != b:
                yield f"cell {number}: the {what} differs from the .py ({_first_line(ours)})"
                break
    if len(source.cells) != len(notebook.cells):
        yield f"{len(notebook.cells)} cells where the .py has {len(source.cells)}"


def _first_line(cell: Any) -> str:
    return repr(cell.source.split("\n")[0][:60])


# ---------------------------------------------------------------------------- running


def state(chapter: Chapter) -> str:
    """'fresh'; 'text' if only prose, captions or layout changed; else 'stale'."""
    notebook = _read_notebook(chapter)
    record = notebook.metadata.get("entk", {}) if notebook else {}
    if record.get("stamp") != stamp(chapter):
        return "stale"
    if record.get("claims") != _claims_digest(chapter.claims):
        return "stale"
    return "text" if any(drift(convert(chapter), notebook)) else "fresh"


def renew_text(chapter: Chapter) -> None:
    """Take prose and metadata from the source and keep the outputs; for equal code cells only."""
    old, new = _read_notebook(chapter), convert(chapter)
    codes = [[c for c in nb.cells if c.cell_type == "code"] for nb in (old, new)]
    assert [c.source for c in codes[0]] == [c.source for c in codes[1]], "the stamp should differ"
    for before, after in zip(*codes, strict=True):
        after.outputs, after.execution_count = before.outputs, before.execution_count
    new.metadata["entk"] = old.metadata["entk"]
    _write(chapter.notebook, _text(new))


def execute(chapter: Chapter, timeout: int = 1800) -> float:
    """Run a chapter top to bottom in a fresh kernel and write its notebook; returns seconds.

    The notebook and the claims are replaced together at the end, so that an error or Ctrl-C leaves
    what was there. A page shows no warnings: text on stderr is refused, as errors are.
    """
    import nbformat
    from nbclient import NotebookClient

    before, notebook = stamp(chapter), convert(chapter)
    with tempfile.TemporaryDirectory() as scratch:
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=timeout,
            coalesce_streams=True,
            resources={"metadata": {"path": str(chapter.source.parent)}},
        )
        kernel = client.create_kernel_manager()  # over files: no network, no ports to share
        kernel.transport, kernel.ip = "ipc", str(Path(scratch, "kernel"))
        environment = os.environ | {"ENTK_CLAIMS_DIR": scratch, "ENTK_PROGRESS": _terminal()}
        started = time.perf_counter()
        with client.setup_kernel(env=environment, stderr=subprocess.DEVNULL):
            for index, cell in enumerate(notebook.cells):
                _progress(f"{chapter.name}: cell {index + 1} of {len(notebook.cells)}")
                client.execute_cell(cell, index)
            seconds = time.perf_counter() - started
            notebook.cells.append(nbformat.v4.new_code_cell(PROBE))
            client.execute_cell(notebook.cells[-1], len(notebook.cells) - 1, store_history=False)
            run_on = json.loads(notebook.cells.pop().outputs[0].text)
        _progress("")
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times of day, other ones in each run
        _scrub(notebook, chapter.root)
        _shrink(notebook)
        if faults := list(check_outputs(notebook)):
            raise SystemExit("\n".join(f"{chapter.name}: {fault}" for fault in faults))
        if stamp(chapter) != before:
            raise SystemExit(f"{chapter.name}: its code changed while it ran; run it again")

        measured = Path(scratch, chapter.claims.name)
        notebook.metadata["entk"] = {
            "stamp": before,
            "claims": _claims_digest(measured),
            "seconds": round(seconds, 1),
            "executed": time.strftime("%Y-%m-%d", time.gmtime()),
            **run_on,
        }
        if measured.exists():
            _write(chapter.claims, measured.read_text(encoding="utf-8"))
        else:
            chapter.claims.unlink(missing_ok=True)
        _write(chapter.notebook, _text(notebook))
    return seconds


def _scrub(node: Any, root: Path) -> None:
    """Take the paths of this machine out of all output text, in place."""
    outputs = [output for cell in node.cells for output in cell.get("outputs", [])]
    text = json.dumps(outputs)
    for path, name in ((f"{root}/", ""), (str(root), "."), (str(Path.home()), "~")):
        if path != "/":
            text = text.replace(json.dumps(path)[1:-1], name)
    from nbformat import from_dict

    clean = iter(from_dict(json.loads(text)))
    for cell in node.cells:
        if cell.get("outputs"):
            cell.outputs = [next(clean) for _ in cell.outputs]


def _shrink(notebook: Any) -> None:
    """Store pictures with a palette of 256 colours: plots look the same at a third of the size."""
    import base64
    import io

    from PIL import Image

    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if picture := output.get("data", {}).get("image/png"):
                image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
                small = io.BytesIO()
                image.quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
                if small.tell() < len(picture) * 3 / 4:
                    output["data"]["image/png"] = base64.b64encode(small.getvalue()).decode()


def _text(notebook: Any) -> str:
    import nbformat

    return nbformat.writes(notebook) + "\n"


def _write(path: Path, text: str) -> None:
    """Replace a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _terminal() -> str:
    """Where a chapter's progress bars may write: the terminal by its name, or nowhere."""
    return os.ttyname(sys.stderr.fileno()) if sys.stderr.isatty() else "off"


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------- checking


def check(chapter: Chapter) -> Iterator[str]:
    """Every fault of a committed chapter, as a sentence that says what to do."""
    notebook = _read_notebook(chapter)
    if notebook is None:
        yield f"{chapter.notebook.name} is missing; `make book` makes it"
        return
    record = notebook.metadata.get("entk", {})
    if record.get("stamp") != stamp(chapter):
        yield "the outputs are stale: code or data changed since they were made; run `make book`"
    if record.get("claims") != _claims_digest(chapter.claims):
        yield "book/claims holds other claims than this run recorded; run `make book`"
    for fault in drift(convert(chapter), notebook):
        yield f"{fault}; run `make book`"
    counts = [c.execution_count for c in notebook.cells if c.cell_type == "code" and c.source]
    if counts != list(range(1, len(counts) + 1)):
        yield f"not run top to bottom in one go (execution counts {counts[:8]}); run `make book`"
    yield from check_outputs(notebook)
    yield from check_figures(notebook)
    markdown = "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    yield from check_markdown(markdown)


def check_outputs(notebook: Any) -> Iterator[str]:
    """Errors and warnings that a reader would see."""
    for number, cell in enumerate(notebook.cells, 1):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                yield f"cell {number} ends in an error: {output.ename}: {output.evalue}"
            elif output.get("name") == "stderr":
                yield (
                    f"cell {number} writes to stderr, which readers would see: "
                    f"{output.text.strip()[:200]!r}; mend the cause"
                )


def figure_cells(notebook: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and `mystnb` metadata of each cell whose outputs hold a picture."""
    for number, cell in enumerate(notebook.cells, 1):
        data = [key for output in cell.get("outputs", []) for key in output.get("data", {})]
        if any(key.startswith("image/") for key in data):
            yield number, cell.metadata.get("mystnb", {})


def check_figures(notebook: Any) -> Iterator[str]:
    """A figure has a caption, a name, and a text for those who cannot see it."""
    for number, settings in figure_cells(notebook):
        figure, alt = settings.get("figure", {}), settings.get("image", {}).get("alt", "")
        for key in ("caption", "name"):
            if not str(figure.get(key, "")).strip():
                yield f'cell {number} draws a figure without {key}: mystnb={{"figure": ...}}'
        if len(alt) < SHORTEST_ALT:
            yield (
                f"cell {number} draws a figure whose alt text is too short ({alt!r}); say what it "
                f'shows, in {SHORTEST_ALT} letters or more: mystnb={{"image": {{"alt": ...}}}}'
            )


def check_markdown(text: str) -> Iterator[str]:
    """One title, headings that go down one step at a time, alt text for every picture."""
    levels, prose, fence = [], [], ""
    for line in text.split("\n"):
        if mark := FENCE.match(line):
            fence = "" if fence and line.strip() == fence else fence or mark[1]
            prose.append(line)
        elif fence and not line.lstrip().startswith(":"):
            continue  # code; but the options of a directive are looked at
        else:
            prose.append(line)
            if not fence and (heading := re.match(r"(#{1,6}) +(\S.*)", line)):
                levels.append(len(heading[1]))
                if len(levels) > 1 and levels[-1] > levels[-2] + 1:
                    yield f"heading {heading[2]!r} jumps from level {levels[-2]} to {levels[-1]}"
    if levels.count(1) != 1 or levels[0] != 1:
        yield f"a page opens with its one title ('# ...'); found levels {levels[:6]}"
    page = re.sub(r"`[^`\n]+`", "", "\n".join(prose))
    for alt, target in re.findall(r"!\[([^]]*)\]\(([^)]*)\)", page):
        if len(alt) < SHORTEST_ALT:
            yield f"picture {target!r} needs an alt text of {SHORTEST_ALT} letters or more"
    for tag in re.findall(r"<img\b[^>]*>", page):
        alt = re.search(r"""\balt=(["'])(.*?)\1""", tag)
        if not alt or len(alt[2]) < SHORTEST_ALT:
            yield f"{tag[:60]} needs an alt text of {SHORTEST_ALT} letters or more"
    directive = r"^ {0,3}[`:~]{3,}\{(?:figure|image)\} *(.*)\n((?: {0,3}:[a-z-]+:.*\n?)*)"
    for target, options in re.findall(directive, "\n".join(prose), re.MULTILINE):
        alt = re.search(r":alt: *(.*)", options)
        if not alt or len(alt[1]) < SHORTEST_ALT:
            yield f"picture {target!r} needs ':alt:', {SHORTEST_ALT} letters or more"


def check_book(root: Path = ROOT) -> Iterator[str]:
    """All faults of all chapters and pages, and those between them."""
    names: dict[str, str] = {}
    chapters = find(root)
    for chapter in chapters:
        yield from (f"{chapter.name}: {fault}" for fault in check(chapter))
        if (notebook := _read_notebook(chapter)) is None:
            continue
        for _, settings in figure_cells(notebook):
            name = settings.get("figure", {}).get("name")
            if name and names.setdefault(name, chapter.name) != chapter.name:
                yield f"{chapter.name}: figure name {name!r} is taken by {names[name]}"
    for page in sorted((root / "book").rglob("*.md")):
        yield from (f"{page.name}: {f}" for f in check_markdown(page.read_text(encoding="utf-8")))
    known = {chapter.name for chapter in chapters}
    for suffix, folder in ((".ipynb", "notebooks"), (".json", "book/claims")):
        for path in sorted((root / folder).glob(f"*{suffix}")):
            if path.stem not in known:
                yield f"{folder}/{path.name} belongs to no chapter; delete it"


def compare_claims(measured: Path, committed: Path) -> Iterator[str]:
    """Claims that came out otherwise than committed: their ids, sources and verdicts.

    Numbers may differ a little between machines; a verdict may not.
    """

    def read(folder: Path) -> dict[tuple[str, str], tuple[str, str]]:
        return {
            (path.stem, claim["id"]): (claim["source"], claim["verdict"])
            for path in sorted(folder.glob("*.json"))
            for claim in json.loads(path.read_text(encoding="utf-8"))["claims"]
        }

    now, kept = read(measured), read(committed)
    for key in sorted(now.keys() | kept.keys()):
        name = f"{key[0]}: claim {key[1]!r}"
        if key not in now:
            yield f"{name} is committed, but no cell recorded it"
        elif key not in kept:
            yield f"{name} was recorded, but is not in book/claims; run `make book`"
        elif now[key] != kept[key]:
            yield f"{name} came out as {' / '.join(now[key])}; committed: {' / '.join(kept[key])}"


# ---------------------------------------------------------------------------- the command


def run(chapters: list[Chapter], *, only_stale: bool) -> None:
    """Bring chapters up to date, with one line for each that needed it."""
    from nbclient.exceptions import CellExecutionError

    for chapter in chapters:
        kind = state(chapter) if only_stale else "stale"
        if kind == "text":
            renew_text(chapter)
            print(f"{chapter.name}: text renewed, outputs kept")
        elif kind == "stale":
            print(f"{chapter.name}: running ...", flush=True)
            try:
                print(f"{chapter.name}: {execute(chapter):.1f} s", flush=True)
            except CellExecutionError as error:
                raise SystemExit(f"\n{chapter.name}: a cell failed\n{error}") from None


def report(faults: Iterator[str], good: str) -> None:
    """Print the faults and exit with 1, or say that there are none."""
    found = list(faults)
    print("\n".join(found) or good)
    if found:
        raise SystemExit(1)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="execute chapters and write their notebooks")
    which = running.add_mutually_exclusive_group()
    which.add_argument("--stale", action="store_true", help="only those that need it (default)")
    which.add_argument("--all", action="store_true", help="all of them")
    running.add_argument("names", nargs="*", help="these, whether stale or not")
    commands.add_parser("stale", help="list the chapters that need running")
    commands.add_parser("check", help="check all that is committed")
    claims = commands.add_parser("claims", help="compare claims just measured with committed ones")
    claims.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)

    if options.command == "run":
        only_stale = not (options.all or options.names)
        run(find(names=options.names), only_stale=only_stale)
    elif options.command == "stale":
        for chapter in find():
            if (kind := state(chapter)) != "fresh":
                print(f"{chapter.name}: {kind}")
    elif options.command == "check":
        report(check_book(), "chapters and pages: pairs, stamps, outputs, figures, headings hold")
    else:
        good = "claims: every verdict came out as committed"
        report(compare_claims(options.folder, ROOT / "book" / "claims"), good)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("\ninterrupted; the notebooks are as they were") from None
