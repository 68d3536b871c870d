"""Toy model of superposition: n sparse features squeezed through m <= n hidden units.

Model: Elhage et al. 2022. Settings: arXiv 2510.00468v1, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from entk_helpers.mode import own_defaults
from entk_helpers.progress import progress_bar
from entk_helpers.testbeds import Run
from entk_helpers.testbeds.checks import check, check_seeds

RECORD_EVERY = 50  # steps between two entries of a run's history


class ToyModel(nn.Module):
    """f(x) = relu(W^T W x + b), from (N, n) to (N, n), with W (m, n) and b (n,).

    Examples:
        >>> model = ToyModel(W=torch.tensor([[1.0, -1.0]]), b=torch.zeros(2))  # n = 2, m = 1
        >>> model(torch.eye(2)).detach()  # two features share a hidden unit
        tensor([[1., 0.],
                [0., 1.]])
    """

    def __init__(self, W: Tensor, b: Tensor):
        super().__init__()
        self.W = nn.Parameter(W.detach().clone())
        self.b = nn.Parameter(b.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (N, n) of the points x (N, n)."""
        return torch.relu(x @ self.W.T @ self.W + self.b)


def importance(n: int = 50, decay: float = 0.8) -> Tensor:
    """Weight of each feature in the loss, I_i = decay^i; (n,), float64.

    Examples:
        >>> importance(4)
        tensor([1.0000, 0.8000, 0.6400, 0.5120], dtype=torch.float64)
    """
    return decay ** torch.arange(n, dtype=torch.float64)


@own_defaults()
def sparse_inputs(n_points: int, n: int, sparsity: float, generator: torch.Generator) -> Tensor:
    """Points of norm 1 whose entries are 0 with probability `sparsity`, else uniform on [0, 1].

    (n_points, n), float32, on the CPU. A point that comes out all zero cannot be
    normalised and is drawn again.

    Examples:
        >>> x = sparse_inputs(1000, 50, 0.9, torch.Generator().manual_seed(0))
        >>> x.shape, round((x == 0).double().mean().item(), 1)
        (torch.Size([1000, 50]), 0.9)
    """
    check(n_points >= 1, f"n_points is {n_points}; give at least 1")
    check(n >= 1, f"n is {n}; give at least 1 feature")
    check(0 <= sparsity < 1, f"sparsity is {sparsity}; give the probability of a zero, in [0, 1)")
    x = torch.zeros(n_points, n)
    while (empty := ~x.any(dim=1)).any():
        shape = (int(empty.sum()), n)
        kept = torch.rand(shape, generator=generator) >= sparsity
        x[empty] = kept * torch.rand(shape, generator=generator)
    return x / x.norm(dim=1, keepdim=True)


def reconstructed(model: ToyModel, threshold: float = 0.75) -> Tensor:
    """Which features pass through the bottleneck, (W^T W)_ii >= threshold; (n,), bool.

    Examples:
        >>> model = ToyModel(W=torch.tensor([[1.0, 0.5]]), b=torch.zeros(2))
        >>> reconstructed(model)  # 1 and 0.25
        tensor([ True, False])
    """
    return model.W.detach().square().sum(0) >= threshold


def train(m: int, sparsity: float, *, seed: int = 0, **settings) -> Run:
    """One run; the settings are those of `train_seeds`.

    Examples:
        >>> run = train(m=2, sparsity=0.5, seed=0, n=5, n_points=50, steps=100)
        >>> run.history["step"], run.history["loss"][-1] < run.history["loss"][0]
        ([0, 50, 100], True)
    """
    return train_seeds(m, sparsity, [seed], **settings)[0]


@own_defaults()
def train_seeds(
    m: int,
    sparsity: float,
    seeds: Sequence[int],
    *,
    n: int = 50,
    n_points: int = 500,
    steps: int = 5000,
    lr: float = 1e-3,
    importance_decay: float = 0.8,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> list[Run]:
    """Independent runs, one for each seed, trained as one batch.

    A seed determines a run's data and its Xavier-normal W; b starts at 0. Full-batch Adam
    in float32 minimises the mean over points and features of I_i (x_i - f_i)^2. Adam acts
    on each entry alone, so that training the runs together changes only their rounding.

    Returns a `Run` per seed, in order. inputs and targets: the same (n_points, n) tensor;
    history: "step", "loss", "reconstructed" (a count), every 50 steps and at the end;
    checkpoints: steps 0 and `steps`. `device`: the CPU unless given. Ordinary random
    state is neither read nor changed.

    Examples:
        >>> runs = train_seeds(2, 0.5, seeds=[0, 1], n=5, n_points=50, steps=100)
        >>> [tuple(run.model.W.shape) for run in runs], sorted(runs[0].checkpoints)
        ([(2, 5), (2, 5)], [0, 100])
    """
    seeds = list(seeds)
    check_seeds(seeds)
    check(n >= 1, f"n is {n}; give at least 1 feature")
    check(1 <= m <= n, f"m is {m}; give from 1 to n = {n} hidden units")
    check(steps >= 1, f"steps is {steps}; give at least 1")
    check(0 < lr < float("inf"), f"lr is {lr}; give a positive number")
    check(
        0 < importance_decay <= 1,
        f"importance_decay is {importance_decay}; give a number in (0, 1]",
    )

    x, W = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        x.append(sparse_inputs(n_points, n, sparsity, generator))
        W.append(torch.randn(m, n, generator=generator) * (2 / (m + n)) ** 0.5)
    x, W = torch.stack(x).to(device or "cpu"), torch.stack(W).to(device or "cpu")
    b = torch.zeros(len(seeds), n, 1, device=x.device)
    xT = x.mT.contiguous()  # (seeds, n, N): the products below are fastest in this layout
    loss_weight = (importance(n, importance_decay) / (n_points * n)).to(x)[:, None]
    optimizer = torch.optim.Adam([W, b], lr=lr, fused=True)

    initial = _states(W, b)
    records = []
    with progress_bar(steps, f"toy models, m = {m}", show=progress) as bar:
        for step in range(steps + 1):
            f = torch.baddbmm(b, W.mT @ W, xT).relu_()
            error = f - xT
            if step % RECORD_EVERY == 0 or step == steps:
                loss = (error.square() * loss_weight).sum((1, 2))
                count = (W.square().sum(1) >= 0.75).sum(1)
                records.append((step, loss.tolist(), count.tolist()))
                bar.update(step - bar.n)
            if step < steps:
                W.grad, b.grad = _gradients_(W, x, f, error, loss_weight)
                optimizer.step()

    check(bool(loss.isfinite().all()), f"lr is {lr}; training diverged, give less")
    runs = []
    for r, (start, end) in enumerate(zip(initial, _states(W, b), strict=True)):
        history = {
            "step": [step for step, _, _ in records],
            "loss": [loss[r] for _, loss, _ in records],
            "reconstructed": [count[r] for _, _, count in records],
        }
        runs.append(
            Run(ToyModel(**end), x[r].clone(), x[r].clone(), history, {0: start, steps: end})
        )
    return runs


@dataclass(frozen=True)
class ClosedForm:
    """The Jacobian of a toy model, from the formula, with no (N*n, P) array in memory.

    With h = W x and the gate g_i = 1 where output i is positive,

        d f_i / d W_al = g_i (delta_il h_a + W_ai x_l),    d f_i / d b_l = g_i delta_il.

    Rows are points and classes (n_points, n), columns W row by row and then b, as in
    `entk_helpers.jacobian`. `weight` (n,) multiplies the rows. All in float64.

    Examples:
        >>> x, model = torch.eye(2), ToyModel(torch.tensor([[1.0, -1.0]]), torch.zeros(2))
        >>> J = jacobian(model, x).flatten(0, 1).double()
        >>> torch.allclose(ClosedForm.of(model, x).gram(), J.T @ J)
        True
    """

    W: Tensor
    x: Tensor
    h: Tensor
    gates: Tensor
    weight: Tensor

    @classmethod
    def of(cls, model: ToyModel, x: Tensor, weight: Tensor | None = None) -> "ClosedForm":
        """At the points x (n_points, n)."""
        W, b, x = model.W.detach().double(), model.b.detach().double(), x.double()
        h = x @ W.T
        weight = torch.ones_like(b) if weight is None else weight.to(b)
        return cls(W, x, h, (h @ W + b > 0).double(), weight)

    def gram(self) -> Tensor:
        """J^T J, (P, P), summed over points before it is spread over hidden units."""
        m, n = self.W.shape
        i = torch.arange(n)
        g = self.gates * self.weight**2
        gx = torch.einsum("pi,pl->il", g, self.x)
        gh = torch.einsum("pi,pa->ai", g, self.h)
        # d f_i / d W = g_i (column i of h, plus W_i x^T): a square of two terms.
        both = torch.einsum("pl,pa,pq->laq", g, self.h, self.x)
        cross = torch.einsum("laq,cl->alcq", both, self.W)
        inputs = torch.einsum("pi,pl,pq->ilq", g, self.x, self.x)
        whole = torch.einsum("aic,ilq->alcq", torch.einsum("ai,ci->aic", self.W, self.W), inputs)
        whole += cross + cross.permute(2, 3, 0, 1)
        whole[:, i, :, i] += torch.einsum("pl,pa,pc->lac", g, self.h, self.h)
        bias = torch.einsum("ai,il->ali", self.W, gx)
        bias[:, i, i] += gh
        out = torch.empty(m * n + n, m * n + n, dtype=whole.dtype, device=whole.device)
        out[: m * n, : m * n] = whole.reshape(m * n, m * n)
        out[: m * n, m * n :] = bias.reshape(m * n, n)
        out[m * n :, : m * n] = bias.reshape(m * n, n).T
        out[m * n :, m * n :] = torch.diag(g.sum(0))
        return out

    def blocks(self) -> Tensor:
        """The matrices (n, d, d), d = n + m + 1, with the nonzero spectra of the blocks K_ii.

        K_ii(x, x') = phi(x).phi(x') with phi = g_i w_i [|W_i| x, without x_i; h + W_i x_i; 1].
        """
        n, length = self.W.shape[1], self.W.norm(dim=0)
        i = torch.arange(n)
        others = length[:, None] * self.x[:, None, :].repeat(1, n, 1)
        others[:, i, i] = 0
        hidden = self.h[:, None, :] + self.x[:, :, None] * self.W.T
        phi = torch.cat([others, hidden, torch.ones_like(self.x)[:, :, None]], dim=2)
        phi = phi * (self.gates * self.weight)[:, :, None]
        return torch.einsum("pid,pie->ide", phi, phi)

    def gate_matrix(self) -> Tensor:
        """The kernel between the normalised gate vectors of the classes, (n, n).

        Entry (i, j) is u_i^T K u_j, with u_i the vector that is g_i(x) / sqrt(N_i) on class i
        and zero on the others, and N_i the number of points where gate i is open.
        """
        Q, inputs, number = self.W.T @ self.W, self.gates.T @ self.x, self.gates.sum(0)
        moved = inputs @ Q
        M = inputs.T * moved + inputs * moved.T + Q * (inputs @ inputs.T)
        M += torch.diag((moved * inputs).sum(1) + number**2)
        scale = self.weight / number.clamp(min=1).sqrt()
        return M * torch.outer(scale, scale)

    def jvp(self, v: Tensor) -> Tensor:
        """J v for columns v (P, k): (n_points * n, k)."""
        m, n = self.W.shape
        V, c = v[: m * n].reshape(m, n, -1), v[m * n :]
        moved = torch.einsum("alk,pl->pak", V, self.x)
        out = (
            torch.einsum("pa,aik->pik", self.h, V) + torch.einsum("ai,pak->pik", self.W, moved) + c
        )
        return (out * (self.gates * self.weight)[:, :, None]).reshape(-1, v.shape[1])

    def vjp(self, u: Tensor) -> Tensor:
        """J^T u for one number a point and class, u (n_points, n): (P,)."""
        u = u * self.gates * self.weight
        return torch.cat([(self.h.T @ u + self.W @ (u.T @ self.x)).flatten(), u.sum(0)])


def _gradients_(
    W: Tensor, x: Tensor, f: Tensor, error: Tensor, loss_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of sum(loss_weight * error^2), error = f - x; twice as fast as autograd.

    With d the gradient before the relu, (seeds, n, N), that for W^T W is M = d x,
    hence W (M + M^T) for W. Overwrites f and error.
    """
    d = error.mul_(2 * loss_weight).mul_(f.gt_(0))
    M = d @ x
    return W @ (M + M.mT), d.sum(2, keepdim=True)


def _states(W: Tensor, b: Tensor) -> list[dict[str, Tensor]]:
    return [{"W": w.clone(), "b": v.flatten().clone()} for w, v in zip(W, b, strict=True)]
