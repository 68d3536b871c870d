"""Results in files: written whole or not at all, checked when read, and never unpickled."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

_SUM = "crc32"


def write_tensors(
    path: Path | str, tensors: Mapping[str, Tensor], about: Mapping[str, str]
) -> None:
    """Write a safetensors file under another name, then give it its own.

    Its header holds a checksum, by which `read_tensors` finds bits that have changed since. The
    same tensors and notes give the same bytes.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_tensors(f"{folder}/two.safetensors", {"x": torch.ones(2)}, {"seed": "0"})
        ...     print(read_tensors(f"{folder}/two.safetensors"))
        ({'x': tensor([1., 1.])}, {'seed': '0'})
    """
    # Copies, as safetensors refuses two names of one tensor.
    whole = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    notes = {**about, _SUM: _checksum(whole, about)}
    data = save(whole, metadata=notes)
    header, rest = _parts(data)
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as part:
        part.write_bytes(len(text).to_bytes(8, "little") + text + data[rest:])


def read_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and its header's notes.

    Raises ValueError for a file that is cut off, of another kind, or not as it was written.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_tensors(f"{folder}/x.safetensors", {"x": torch.arange(3)}, about={})
        ...     tensors, about = read_tensors(f"{folder}/x.safetensors")
        >>> tensors["x"], about
        (tensor([0, 1, 2]), {})
    """
    # Read once: `safe_open` opens a file twice, and between the two it may be replaced.
    data = Path(path).read_bytes()
    try:
        tensors = dict(sorted(load(data).items()))
        about = dict(_parts(data)[0].get("__metadata__", {}))
    except (SafetensorError, AttributeError, LookupError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    # Files of other programs, and those of before there was one, have no checksum.
    if about.pop(_SUM, None) not in (None, _checksum(tensors, about)):
        raise ValueError(f"{path} is damaged: its checksum does not fit what it holds; remove it")
    return tensors, about


def _parts(data: bytes) -> tuple[dict, int]:
    """The header of a safetensors file, and where its numbers begin."""
    start = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:start]), start


def write_text(path: Path, text: str) -> None:
    """Write a text file under another name, then give it its own.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_text(Path(folder, "new", "a.txt"), "whole")
        ...     Path(folder, "new", "a.txt").read_text()
        'whole'
    """
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A name to write to, this process's own; at the end it takes the place of `path`.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with replacing(Path(folder, "a.txt")) as part:
        ...         _ = part.write_text("whole")
        ...     [file.name for file in Path(folder).iterdir()]
        ['a.txt']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def reading(path: Path | str, what: str) -> Iterator[None]:
    """Turn what goes wrong with the content of a file into a ValueError that names the file.

    Examples:
        >>> with reading("a.json", "seeds"):
        ...     {"seed": 0}["seeds"]
        Traceback (most recent call last):
        ValueError: a.json holds no seeds: KeyError('seeds')
    """
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no {what}: {error!r}") from error


def _checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """Of names, dtypes, shapes, numbers and notes, in any order of them."""
    kinds = [[name, str(t.dtype), list(t.shape)] for name, t in sorted(tensors.items())]
    total = zlib.crc32(json.dumps([kinds, sorted(about.items())]).encode())
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy(), total)
    return f"{total:08x}"
