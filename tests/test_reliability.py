"""Kills, damaged files, models that fail on the way: nothing half done passes for a result."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from language_zoo import build as build_language_model
from torch import nn

from entk_helpers import (
    NTKOperator,
    empirical_ntk,
    jacobian,
    linearised,
    spectrum,
    top_eigenpairs,
)
from entk_helpers.claims import Ledger
from entk_helpers.language import LogitKernel, Windows
from entk_helpers.language import study as studies
from entk_helpers.storage import read_tensors, write_tensors
from entk_helpers.testbeds import modular, tms, wide
from entk_helpers.testbeds.storage import read_run, write_run

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.filterwarnings("ignore:torch.func.vmap cannot follow")


# ---------------------------------------------------------------------------- kills


@pytest.fixture(scope="module")
def survived(tmp_path_factory):
    """What `kill_writers.py` saw."""
    command = [sys.executable, ROOT / "tests" / "kill_writers.py", tmp_path_factory.mktemp("kills")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["tensors", "run", "ledger", "layers"])
def test_a_process_that_is_killed_while_it_saves_leaves_whole_files(survived, kind):
    seen = survived["killed"][kind]
    assert seen["versions"] > 1
    assert sum(seen["cut"] for seen in survived["killed"].values()) > 0  # some within a save


@pytest.mark.parametrize("kind", ["tensors", "run", "ledger"])
def test_two_processes_that_write_one_file_leave_one_of_the_two(survived, kind):
    assert survived["two"][kind]["failed"] == 0 and survived["two"][kind]["versions"] > 2


def test_a_solve_that_is_killed_again_and_again_ends_with_the_same_bits(survived):
    assert survived["resumed"]["same"] and survived["resumed"]["kills"] > 2


# ---------------------------------------------------------------------------- damaged files


def windows():
    words = ["a", "b", "c"]
    ids = torch.arange(12).reshape(3, 4)
    return Windows(ids, torch.ones_like(ids), *[words] * 6, [0, 1, 2], words)


def small_study(folder: Path) -> Path:
    studies.write_windows(folder, windows())
    studies.write_baselines(
        folder, {studies.LOGITS: {None: torch.ones(3, 2)}}, {1: torch.ones(3, 4)}
    )
    layer = studies.LayerResult(1, torch.ones(2), torch.zeros(2), torch.ones(3, 2), {"products": 9})
    studies.write_layer(folder, layer)
    studies.write_json(folder / "settings.json", {"model": "small"})
    studies.write_json(folder / "tables.json", {"layers": [1], "rows": []})
    return folder


MATRIX = torch.diag(torch.arange(12.0, 0, -1).double()) + 0.1


class Stop(Exception):
    """Ends a solve on the way."""


class Stopped:
    """A matrix that stops answering, so that a state stays behind."""

    shape, dtype = MATRIX.shape, MATRIX.dtype

    def __init__(self):
        self.left = 4

    def __matmul__(self, v):
        self.left -= 1
        if not self.left:
            raise Stop
        return MATRIX @ v


def solve(path):
    return top_eigenpairs(MATRIX, 3, block=2, tol=1e-8, resume=path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Kind -> (a file of it, how it is read)."""
    root = tmp_path_factory.mktemp("files")
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(4, 30, generator=generator)
    write_tensors(root / "tensors", {"W": W, "n": torch.arange(3)}, {"note": "one"})
    dtypes = {0: torch.int8, 5: torch.float16}
    write_run(root / "run", {0: {"W": W}, 5: {"W": W}}, {"step": [0, 5]}, dtypes, {"seed": "1"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spectrum, "SAVE_EVERY", 0.0)
        with pytest.raises(Stop):
            top_eigenpairs(Stopped(), 3, block=2, tol=1e-8, resume=root / "state")
    study = small_study(root / "study")
    found = {"tensors": (root / "tensors", read_tensors), "run": (root / "run", read_run),
             "state": (root / "state", solve)}  # fmt: skip
    for file in sorted(study.iterdir()):
        found[file.name] = (file, lambda path: studies.load_study(path.parent))
    return found


BINARY = [
    "tensors",
    "run",
    "state",
    "windows.safetensors",
    "baselines.safetensors",
    "layer_01.safetensors",
]
TEXT = ["settings.json", "windows.json", "layer_01.json", "tables.json"]


@st.composite
def damages(draw):
    """A change of bytes: a flipped bit, a cut, zeros, bytes put in, or something else entirely."""
    share = draw(st.floats(0, 1, exclude_max=True))
    kind = draw(st.sampled_from(["flip", "cut", "zeros", "insert", "replace"]))
    some, bit = draw(st.binary(min_size=1, max_size=9)), draw(st.integers(0, 7))

    def change(whole: bytes) -> bytes:
        # Half of all damage goes to the beginning, where the header is.
        at = int(share * 2 * min(len(whole), 400)) if share < 0.5 else int(share * len(whole))
        at = min(at, len(whole) - 1)
        return {
            "flip": whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :],
            "cut": whole[:at],
            "zeros": whole[:at] + bytes(len(whole) - at),
            "insert": whole[:at] + some + whole[at:],
            "replace": some,
        }[kind]

    return change


def values(result) -> str:
    """All numbers and texts of a result, to the last bit; `about` apart, see below."""
    torch.set_printoptions(precision=17, threshold=10**9)
    try:
        return repr(result)
    finally:
        torch.set_printoptions(profile="default")


def read_damaged(files, kind, damage):
    """What a reader makes of a damaged file; None where it refuses, naming the file."""
    path, read = files[kind]
    whole = path.read_bytes()
    assert damage(whole) is not None
    try:
        path.write_bytes(damage(whole))
        return read(path)
    except ValueError as error:
        if path.name not in str(error):
            pytest.fail(f"{kind} is not named: {error}")
        return None
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("kind", BINARY)
@given(damages())
def test_damage_to_a_binary_file_is_seen_or_does_no_harm(files, kind, damage):
    path, read = files[kind]
    whole = path.read_bytes()
    expected = read(path)
    path.write_bytes(whole)  # a solve removes its state
    found = read_damaged(files, kind, damage)
    if found is None:
        return
    if kind == "tensors":  # without its checksum, a header has one more note
        expected, found = ((tensors, about["note"]) for tensors, about in (expected, found))
    elif kind == "run":
        expected, found = ((run.checkpoints, run.history) for run in (expected, found))
    assert values(found) == values(expected)


@pytest.mark.parametrize("kind", TEXT)
@given(damages())
def test_damage_to_json_is_refused_with_the_name_of_the_file_or_is_other_json(files, kind, damage):
    """There is no checksum in JSON: a flipped digit cannot be seen, and no other error may come."""
    read_damaged(files, kind, damage)


@pytest.mark.parametrize("content", ["3", "[]", "null", '"text"', "{}", '{"layers": "1"}'])
@pytest.mark.parametrize("kind", ["windows.json", "tables.json"])
def test_json_of_another_shape_is_refused(files, kind, content):
    assert read_damaged(files, kind, lambda _: content.encode()) is None


def test_a_state_that_lacks_a_part_or_has_another_is_refused(files):
    path, _ = files["state"]
    whole = path.read_bytes()
    tensors, about = read_tensors(path)
    try:
        for name in ("Q", "AQ", "fresh", "generator"):
            write_tensors(path, {k: v for k, v in tensors.items() if k != name}, about)
            with pytest.raises(ValueError, match=f"state' has no {name}; remove it"):
                solve(path)
        write_tensors(path, {**tensors, "AQ": tensors["AQ"] * torch.nan}, about)
        with pytest.raises(ValueError, match="belongs to another operator"):
            solve(path)
    finally:
        path.write_bytes(whole)


def test_a_ledger_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    claim = dict(statement="s", source="s", published="p", measured=[1], verdict="holds", why="w")
    ledger = Ledger("chapter", tmp_path)
    ledger.record("one", **claim)
    before = ledger.path.read_bytes()
    monkeypatch.setattr(
        "entk_helpers.storage.os.replace", lambda *_: (_ for _ in ()).throw(OSError("full"))
    )
    with pytest.raises(OSError, match="full"):
        ledger.record("two", **claim)
    assert ledger.path.read_bytes() == before and list(tmp_path.iterdir()) == [ledger.path]


# ---------------------------------------------------------------------------- NaN on the way


class Poisoned(nn.Linear):
    """NaN at points that begin with a number above 9: by `where`, so that gradients are zero."""

    def forward(self, x):
        return torch.where(x[..., :1] > 9, torch.nan, super().forward(x).tanh())


class Tiring(nn.Linear):
    """All is NaN from the k-th call on, in outputs and gradients."""

    calls, last = 0, 0

    def forward(self, x):
        self.calls += 1
        out = super().forward(x)
        return out * torch.nan if self.calls > self.last else out


POINTS = torch.randn(24, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
WORK = {
    **{reduce: lambda model, x, reduce=reduce: empirical_ntk(model, x, reduce=reduce, memory="20KB")
       for reduce in ("full", "per_class", "class_averaged", "pseudo")},
    "generous": lambda model, x: empirical_ntk(model, x),
    "cross": lambda model, x: empirical_ntk(model, POINTS[:3], x, reduce="full"),
    "jacobian": lambda model, x: jacobian(model, x, memory="20KB"),
    "operator": lambda model, x: NTKOperator(model, x) @ torch.ones(72),
    "operator, in parts": lambda model, x: NTKOperator(model, x, memory="5KB") @ torch.ones(72),
    "eigenpairs": lambda model, x: top_eigenpairs(NTKOperator(model, x, memory="5KB"), 3).values,
    "linearised": lambda model, x: linearised(model, x, torch.ones(15)),
}  # fmt: skip


@pytest.mark.parametrize("work", WORK)
def test_a_point_where_the_model_is_nan_is_refused_though_its_gradient_is_zero(work):
    model = Poisoned(4, 3).double()
    x = POINTS.clone()
    assert WORK[work](model, x).isfinite().all()
    x[19, 0] = 10.0
    with pytest.raises(ValueError, match=r"the model's output holds .* NaN"):
        WORK[work](model, x)


@pytest.mark.parametrize("work", WORK)
def test_a_model_that_turns_to_nan_on_the_way_gives_no_result(work):
    model = Tiring(4, 3).double()
    model.last = 10**9
    whole = WORK[work](model, POINTS)
    calls = model.calls
    assert calls > 5
    for last in sorted({*range(5, min(calls, 25)), calls // 2, calls - 1, calls}):
        model.calls, model.last = 0, last
        if last == calls:
            assert torch.equal(WORK[work](model, POINTS), whole)
        else:
            with pytest.raises(ValueError, match=r"NaN|differ: it is random|depend on the other"):
                WORK[work](model, POINTS)


def test_a_window_where_a_language_model_is_nan_is_refused():
    model = build_language_model("llama")
    ids = torch.randint(6, 37, (12, 5), generator=torch.Generator().manual_seed(0))
    ids[9, 2] = 5
    K = LogitKernel(model, ids, layer=1)
    assert (K @ torch.ones(K.shape[0])).isfinite().all()
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = torch.nan
    with pytest.raises(ValueError, match=r"NaN|off by nan"):
        LogitKernel(model, ids, layer=1) @ torch.ones(K.shape[0])


@pytest.mark.parametrize(
    "train",
    [
        lambda: tms.train(3, 0.5, seed=0, n=5, n_points=20, steps=20, lr=1e25),
        lambda: modular.train_mlp(0, p=5, width=8, epochs=20, lr=1e25),
        lambda: wide.train_seeds(
            [4, 16, 3], POINTS.float(), torch.ones(24, 3), [0], steps=50, rate=1e25),
    ],
    ids=["superposition", "modular", "wide"],
)  # fmt: skip
def test_training_at_an_absurd_rate_gives_no_run(train):
    with pytest.raises(ValueError, match="diverged"):
        train()


# ---------------------------------------------------------------------------- no foreign code

FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
SOURCES = [
    file
    for folder in ("entk_helpers", "book/_tools", "book/_ext", "benchmarks", "notebooks")
    for file in sorted((ROOT / folder).rglob("*.py"))
]


def dangers(tree: ast.AST):
    """What could run code that came with data."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        yield from (name for name in names if name.split(".")[0] in FORBIDDEN)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in ("eval", "exec", "torch.load", "os.system", "os.popen", "__import__"):
            yield called
        for keyword in node.keywords:
            value = getattr(keyword.value, "value", None)
            if keyword.arg in ("trust_remote_code", "shell", "allow_pickle") and value is not False:
                yield f"{called}({keyword.arg}=...)"


def test_nothing_is_unpickled_and_no_code_of_others_is_run():
    assert len(SOURCES) > 60
    found = {
        str(file.relative_to(ROOT)): list(dangers(ast.parse(file.read_text()))) for file in SOURCES
    }
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from joblib import load", "import torch\ntorch.load('x')", "eval('1')",
     "np.load(f, allow_pickle=True)", "run('ls', shell=True)", "run('ls', shell=s)", "exec(text)",
     "AutoModel.from_pretrained(name, trust_remote_code=True)"],
)  # fmt: skip
def test_what_is_forbidden_would_be_found(code):
    assert list(dangers(ast.parse(code)))
    allowed = "model.eval()\nnp.load('a.npz')\nrun(['ls'], shell=False)\nimport json"
    assert not list(dangers(ast.parse(allowed)))
