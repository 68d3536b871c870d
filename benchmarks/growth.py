"""How time and memory grow with points N, outputs C, parameters P and positions T.

Two tasks: the class-averaged kernel, and 20 products with the flattened (N*C, N*C) kernel, one
after another and the set-up included. One of the four is varied, each size twice the one before (the
width, for P); the others stay. Networks: 64-H-H-C with tanh; for T, one layer of attention and one
of tanh on T positions of 32 numbers, averaged. Float32; no ReLU, whose kinks differ in float64.

At every size each answer is compared with gradients taken output by output in float64: the kernel
among six points, and the rows of six points in the sum of the products. Exponents are least squares
of logarithms over the three largest sizes, after what a tiny network takes has been taken off, and
only where each of the three takes half as much again or more. Beside them stands the same fit through a
count of multiplications, or of numbers held. CPU time is fitted, which other programs hardly
disturb (on a GPU, time). A contender is not taken further once a size took 1 s or 1 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from entk_helpers import NTKOperator, empirical_ntk

from .measure import Contender, Measure, Outcome, Worker, difference
from .mlp import Problem, has_jax, jax_worker
from .report import Growth, Row, Section

KEY = "f"
TOLERANCE = 2e-5  # of float32 answers, relative to the largest entry
STOP_SECONDS, STOP_MB = 1.0, 1000.0
FIXED, LAST = 1.5, 3  # values of at least 1.5 times the fixed cost, at three sizes
PRODUCTS, CHECKED = 20, 6
INPUTS = 64
KERNEL = {"n_points": 256, "n_outputs": 8, "width": 128}
PRODUCT = {"n_points": 32, "n_outputs": 8, "width": 128}
BLOCK = {"n_points": 64, "n_outputs": 8, "width": 32}  # and `n_positions`
VARIED = {  # symbol -> what it is, its setting
    "N": ("points", "n_points"),
    "C": ("outputs", "n_outputs"),
    "P": ("parameters", "width"),
    "T": ("positions", "n_positions"),
}
SIZES = {  # what stays, and the values of what is varied
    ("kernel", "N"): (KERNEL, (64, 128, 256, 512, 1024, 2048)),
    ("kernel", "C"): (KERNEL, (4, 8, 16, 32, 64, 128)),
    ("kernel", "P"): (KERNEL, (64, 128, 256, 512, 1024)),
    ("kernel", "T"): (BLOCK, (8, 16, 32, 64, 128)),
    ("product", "N"): (PRODUCT, (32, 64, 128, 256, 512, 1024, 2048)),
    ("product", "C"): (PRODUCT, (4, 8, 16, 32, 64, 128)),
    ("product", "P"): (PRODUCT, (64, 128, 256, 512, 1024)),
    ("product", "T"): (BLOCK, (8, 16, 32, 64, 128)),
}
SMOKE = {"n_points": 7, "n_outputs": 3, "width": 8}


class Block(nn.Module):
    """(N, T, d) -> (N, C): attention, tanh, and the mean over positions."""

    def __init__(self, d: int, n_outputs: int):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)
        self.read = nn.Linear(d, n_outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        x = x + self.out((q @ k.mT / k.shape[-1] ** 0.5).softmax(-1) @ v)
        return self.read((x + self.down(self.up(x).tanh())).mean(-2))


def mlp(width: int, n_outputs: int) -> nn.Module:
    layers = nn.Linear(INPUTS, width), nn.Linear(width, width), nn.Linear(width, n_outputs)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


def problem(
    n_points: int, n_outputs: int, width: int, n_positions: int = 0, device: str = "cpu"
) -> Problem:
    """A network with random weights, and random points."""
    torch.manual_seed(0)
    model = Block(width, n_outputs) if n_positions else mlp(width, n_outputs)
    shape = (n_points, n_positions, width) if n_positions else (n_points, INPUTS)
    return Problem(model.to(device), torch.randn(shape).to(device))


def vectors(at: Problem) -> Tensor:
    """What the products are taken with, one a row."""
    shape = PRODUCTS, len(at.x), at.model(at.x[:1]).shape[1]
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return drawn.flatten(1).to(at.x)


def structured(at: Problem, reduce: str = "class_averaged") -> Tensor:
    return empirical_ntk(at.model, at.x, reduce=reduce).cpu()


def jacobians(at: Problem) -> list[Tensor]:
    """The Jacobian of every point, written out: (N, C, P) a tensor."""

    def one(params: dict[str, Tensor], point: Tensor) -> Tensor:
        return functional_call(at.model, params, (point[None],))[0]

    params = {name: value.detach() for name, value in at.model.named_parameters()}
    return [j.flatten(2) for j in vmap(jacrev(one), (None, 0))(params, at.x).values()]


def contracted(at: Problem) -> Tensor:
    """The usual recipe, with the sum over outputs in the einsum."""
    J = jacobians(at)
    return (sum(torch.einsum("ncp,mcp->nm", j, j) for j in J) / J[0].shape[1]).cpu()


def matrix_free(at: Problem) -> Tensor:
    operator = NTKOperator(at.model, at.x)
    return sum(operator @ v for v in vectors(at)).cpu()


def curvlinops(at: Problem) -> Tensor:
    """Its Jacobian operator after the transposed one; all points are one batch, as for ours."""
    from curvlinops import JacobianLinearOperator, TransposedJacobianLinearOperator

    data = [(at.x, at.x.new_zeros(len(at.x), 1))]
    settings = at.model, [*at.model.parameters()], data
    options = {"check_deterministic": False, "num_data": len(at.x)}
    J = JacobianLinearOperator(*settings, **options)
    transposed = TransposedJacobianLinearOperator(*settings, **options)
    return sum(J @ (transposed @ v) for v in vectors(at)).cpu()


def dense(at: Problem) -> Tensor:
    """The flattened kernel, written out once."""
    K = sum(j @ j.T for j in (j.flatten(0, 1) for j in jacobians(at)))
    return sum(K @ v for v in vectors(at)).cpu()


def facts(_: Problem, answer: Tensor) -> dict[str, Any]:
    """What is checked of an answer."""
    return {"K": answer.detach().numpy()}


def checked(task: str, answer: np.ndarray, n_points: int) -> np.ndarray:
    """The entries of an answer that are compared: of points spread over all of them."""
    points = np.linspace(0, n_points - 1, CHECKED).astype(int)
    return (
        answer[np.ix_(points, points)] if task == "kernel" else answer.reshape(n_points, -1)[points]
    )


def reference(task: str, **size: int) -> np.ndarray:
    """These entries from gradients of one output at a time, in float64."""
    at = problem(**size)
    vector = vectors(at).sum(0).double()
    model, x = at.model.double(), at.x.double()
    points = x[np.linspace(0, len(x) - 1, CHECKED).astype(int)]
    params = {name: value.detach() for name, value in model.named_parameters()}
    pulled: list[Tensor] = []
    if task == "product":
        weighted = (model(x).flatten() * vector).sum()
        pulled = [g.flatten() for g in torch.autograd.grad(weighted, [*model.parameters()])]
    rows, C = [], size["n_outputs"]
    for c in range(C):

        def output(params: dict[str, Tensor], point: Tensor, c: int = c) -> Tensor:
            return functional_call(model, params, (point[None],))[0, c]

        found = vmap(grad(output), (None, 0))(params, points)
        gradients = [g.flatten(1) for g in found.values()]
        if task == "kernel":
            rows.append(sum(g @ g.T for g in gradients) / C)
        else:
            rows.append(sum(g @ u for g, u in zip(gradients, pulled, strict=True)))
    answer = sum(rows) if task == "kernel" else torch.stack(rows, dim=1)
    return answer.detach().numpy()


class Way(NamedTuple):
    """How a task is done: by a function here, or (None) by neural-tangents."""

    name: str
    solve: Callable[[Problem], Tensor] | None
    device: str = "cpu"


NEURAL_TANGENTS = "neural-tangents"
WAYS = {
    "kernel": {
        "vmap(jacrev) + einsum": contracted,
        "empirical_ntk": structured,
        NEURAL_TANGENTS: None,
    },
    "product": {
        "dense kernel": dense,
        "NTKOperator": matrix_free,
        "curvlinops": curvlinops,
    },
}


def ways(task: str) -> list[Way]:
    """All contenders; on a GPU too, where there is one, those that are not an old jax."""
    found = [Way(name, solve) for name, solve in WAYS[task].items()]
    if torch.cuda.is_available():
        found += [Way(w.name, w.solve, "cuda") for w in found if w.solve]
    return found


def counted(name: str, at: dict[str, int]) -> tuple[float, float]:
    """Leading terms: multiplications, and numbers held."""
    n, c, h = at["n_points"], at["n_outputs"], at["width"]
    t = at.get("n_positions", 0)
    p = n_parameters(at)
    if t:
        once = t * (p + 2 * t * h)  # forwards, or backwards for one output
        held = t * (t + 10 * h)  # activations
        grams = sum(
            min(c * p_one * (t + n), n * t * t * (i + c * o))
            for i, o in [(h, h)] * 4 + [(h, 4 * h), (4 * h, h)]
            for p_one in [i * o]
        )
        kept = held
    else:
        once, held, kept = p, 2 * h, h
        grams = n * (c * h + INPUTS + 3 * h)
    return {
        "vmap(jacrev) + einsum": (n * c * (once + n * p), n * c * (p + held)),
        "empirical_ntk": (n * (c * once + grams), n * (c * kept + n)),
        NEURAL_TANGENTS: (n * (c * once + grams), n * (c * kept + n)),
        "dense kernel": (n * c * (once + n * c * p), n * c * (p + held + n * c)),
        "NTKOperator": (PRODUCTS * n * once, n * (held + c) + p),
        "curvlinops": (PRODUCTS * n * once, n * (held + c) + p),
    }[name]


def n_parameters(at: dict[str, int]) -> int:
    size = at | {"n_points": 1}
    return sum(p.numel() for p in problem(**size).model.parameters())


def exponent(sizes: Sequence[float], values: Sequence[float], fixed: float = 0) -> float | None:
    """The power of the last three sizes that values - fixed follow; None where these are small."""
    sizes, values = sizes[-LAST:], np.array(values[-LAST:])
    if len(sizes) < LAST or values.min() < FIXED * fixed or values.min() <= 0:
        return None
    return float(np.polyfit(np.log(sizes), np.log(values - fixed), 1)[0])


def series(
    measure: Measure, task: str, way: Way, sizes: Sequence[dict[str, int]]
) -> Iterator[Outcome]:
    """Measure a tiny case, then growing sizes until one takes too much, in one process."""
    for i, size in enumerate(sizes):
        if way.solve is None:
            kind = "block" if "n_positions" in size else "mlp"
            contender: Contender | Worker = jax_worker(problem(**size), kind)
        else:
            there = {} if way.device == "cpu" else {"device": way.device}
            small = tiny(size) | there
            contender = Contender(way.name, problem, way.solve, facts, size | there, small)
        out = measure(contender, again=i > 0)
        yield out
        if i > 0 and (taken(out, way) > STOP_SECONDS or out.peak_mb > STOP_MB):
            return


def tiny(size: dict[str, int]) -> dict[str, int]:
    """A case that takes next to nothing but the fixed cost."""
    return SMOKE | ({"n_positions": 3} if "n_positions" in size else {})


def taken(out: Outcome, way: Way) -> float:
    """The seconds that are fitted."""
    return out.cpu_seconds if way.device == "cpu" else out.seconds


def run(measure: Measure, threads: int, *, smoke: bool = False, **_: bool) -> Iterator[Section]:
    """Measure a section for each task and each variable."""
    jax = has_jax()
    for task, symbol in SIZES:
        yield section(measure, threads, task, symbol, smoke, jax)


def section(
    measure: Measure, threads: int, task: str, symbol: str, smoke: bool, jax: bool
) -> Section:
    """All contenders at all sizes of one variable, compared with the reference."""
    (what, setting), (base, values) = VARIED[symbol], SIZES[task, symbol]
    if smoke:
        base, values = SMOKE, (8, 16)
    sizes = [base | {setting: value} for value in values]
    x = [n_parameters(size) if symbol == "P" else size[setting] for size in sizes]
    wanted: dict[int, np.ndarray] = {}
    rows, growth, versions = [], [], {}
    for way in ways(task):
        if way.solve is None and not jax:
            continue
        first, *outcomes = series(measure, task, way, [tiny(sizes[0]), *sizes])
        for i, out in enumerate(outcomes):
            if i not in wanted:
                wanted[i] = reference(task, **sizes[i])
            apart = difference(checked(task, out.facts["K"], sizes[i]["n_points"]), wanted[i])
            rows.append(Row(
                way.name, out.seconds, len(out.runs), out.cpu_seconds, out.peak_mb, None,
                apart, TOLERANCE, f"{symbol} = {x[i]:,}", way.device, x[i],
            ))  # fmt: skip
            versions |= out.versions
        n = len(outcomes)
        counts, held = zip(*(counted(way.name, size) for size in sizes[:n]), strict=True)
        seconds = exponent(x[:n], [taken(out, way) for out in outcomes], taken(first, way))
        peaks = exponent(x[:n], [out.peak_mb for out in outcomes], max(first.peak_mb, 1.0))
        growth.append(Growth(
            way.name, way.device, symbol,
            seconds, None if seconds is None else exponent(x[:n], counts),
            peaks, None if peaks is None else exponent(x[:n], held),
            x[n - 1] if n < len(sizes) else None,
        ))  # fmt: skip
    fixed = ", ".join(
        f"{other} = {base[name]}"
        for other, name in (("N", "n_points"), ("C", "n_outputs"), ("width", "width"))
        if name != setting
    )
    titles = {
        "kernel": "class-averaged kernel",
        "product": f"{PRODUCTS} products with the flattened kernel, set-up included",
    }
    network = "layer of attention and tanh" if symbol == "T" else "MLP"
    title = f"{titles[task]}, by {what} {symbol}; {network}, {fixed}"
    return Section(KEY, title, threads, rows, [], versions, growth)
