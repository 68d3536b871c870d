"""Kills processes that write, again and again, and reads what they left. Run by test_reliability.

One process imports the package and forks the writers: each is killed at a random moment, or two
of them write to the same place. Prints, as JSON, what was seen of each kind of file.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from entk_helpers import spectrum
from entk_helpers.claims import Ledger
from entk_helpers.language.study import LayerResult, finished_layers, read_layer, write_layer
from entk_helpers.storage import read_tensors, write_tensors
from entk_helpers.testbeds.storage import read_run, write_run

torch.set_num_threads(1)
ROUNDS, SIZE = 8, 60_000


def forked(work) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1 if sys.exc_info()[0] else 0)
    return pid


def save_tensors(path: Path, mark: int = 0, times: int = 5000) -> None:
    for version in range(times):
        write_tensors(
            path, {"a": torch.full((SIZE,), version)}, {"v": str(version), "m": str(mark)}
        )


def load_tensors(path: Path) -> int:
    tensors, about = read_tensors(path)
    assert (tensors["a"] == int(about["v"])).all() and len(tensors["a"]) == SIZE
    return int(about["v"])


def save_run(path: Path, mark: int = 0, times: int = 5000) -> None:
    for version in range(times):
        states = {step: {"W": torch.full((SIZE,), float(version))} for step in (0, version + 1)}
        kept = dict.fromkeys(states, torch.float32)
        write_run(path, states, {"step": [0, version + 1]}, kept, {"v": str(version)})


def load_run(path: Path) -> int:
    run = read_run(path)
    version = int(run.about["v"])
    assert run.history["step"] == sorted(run.checkpoints) == [0, version + 1]
    assert all((state["W"] == version).all() for state in run.checkpoints.values())
    return version


def save_ledger(path: Path, mark: int = 0, times: int = 5000) -> None:
    ledger = Ledger("chapter", path.parent)
    texts = dict(statement="s" * 2000, source="s", published="p", verdict="holds", why="w")
    for version in range(times):
        ledger.record(f"claim-{mark}-{version}", measured=[version], **texts)


def load_ledger(path: Path) -> int:
    claims = json.loads(path.read_text())["claims"]
    mark = claims[0]["id"].split("-")[1]
    assert [c["id"] for c in claims] == [f"claim-{mark}-{i}" for i in range(len(claims))]
    return len(claims)


def save_layers(path: Path, mark: int = 0, times: int = 5000) -> None:
    first = max(finished_layers(path.parent), default=-1) + 1
    for layer in range(first, times):
        full = torch.full((SIZE // 100,), float(layer))
        write_layer(
            path.parent,
            LayerResult(layer, full, full, torch.outer(full, full[:9]), {"layer": layer}),
        )


def load_layers(path: Path) -> int:
    layers = finished_layers(path.parent)
    for n in layers:
        layer = read_layer(path.parent, n)
        assert (
            (layer.values == n).all()
            and (layer.scores == n * n).all()
            and layer.about == {"layer": n}
        )
    assert layers == list(range(len(layers)))
    return len(layers)


KINDS = {
    "tensors": ("file.safetensors", save_tensors, load_tensors),
    "run": ("file.safetensors", save_run, load_run),
    "ledger": ("chapter.json", save_ledger, load_ledger),
    "layers": ("layer_00.json", save_layers, load_layers),
}


def killed(name: str, folder: Path) -> dict:
    """Kill a writer at a random moment, `ROUNDS` times; what is there must be whole each time."""
    file, save, load = KINDS[name]
    path, cut, seen = folder / file, 0, []
    folder.mkdir()
    for _ in range(ROUNDS):
        pid = forked(lambda: save(path))
        for _ in range(random.randint(1, 5)):  # some files come and go
            before = folder.stat().st_mtime_ns
            while folder.stat().st_mtime_ns == before or not path.exists():
                time.sleep(0.0005)
        time.sleep(random.uniform(0, 0.005))
        os.kill(pid, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
        cut += len(list(folder.glob(".*.part")))
        for part in folder.glob(".*.part"):
            part.unlink()
        seen.append(load(path))
    return {"cut": cut, "versions": len(set(seen))}


def two_writers(name: str, folder: Path) -> dict:
    """Two processes write the same file at once: neither fails, and a reader sees whole files."""
    file, save, load = KINDS[name]
    path = folder / file
    folder.mkdir()
    for mark in (1, 2):
        forked(lambda m=mark: save(path, m, 40))
    seen, codes = set(), []
    while len(codes) < 2:
        pid, status = os.waitpid(-1, os.WNOHANG)
        codes += [status] if pid else []
        if path.exists():
            seen.add(load(path))
    return {"failed": sum(map(bool, codes)), "versions": len(seen)}


def resumed(folder: Path) -> dict:
    """Kill a Lanczos solve until it ends: the pairs are those of one that was left alone."""
    spectrum.SAVE_EVERY = 0.0
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(250, 250, dtype=torch.float64, generator=generator)).Q
    A = Q * (1 / (1 + torch.arange(250.0).double()) ** 0.3) @ Q.T
    A = (A + A.T) / 2
    straight = spectrum.top_eigenpairs(A, 8, tol=1e-8)
    folder.mkdir()

    def solve() -> None:
        pairs = spectrum.top_eigenpairs(A, 8, tol=1e-8, resume=folder / "state")
        write_tensors(folder / "done", {"vectors": pairs.vectors, "values": pairs.values}, {})

    kills = 0
    while not (folder / "done").exists():
        pid = forked(solve)
        for _ in range(random.randint(2, 6)):  # saves
            before = folder.stat().st_mtime_ns
            while folder.stat().st_mtime_ns == before and not (folder / "done").exists():
                time.sleep(0.0005)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills += 1
    found, _ = read_tensors(folder / "done")
    same = torch.equal(found["vectors"], straight.vectors) and torch.equal(
        found["values"], straight.values
    )
    return {"kills": kills, "same": same}


if __name__ == "__main__":
    random.seed(0)
    root = Path(sys.argv[1])
    print(json.dumps({
        "killed": {name: killed(name, root / f"killed {name}") for name in KINDS},
        "two": {name: two_writers(name, root / f"two {name}") for name in ("tensors", "run", "ledger")},
        "resumed": resumed(root / "resumed"),
    }))  # fmt: skip
