"""A network with one hidden layer of squares learns a + b mod p.

Model: Gromov 2023. Settings: arXiv 2510.00468v4, section 3.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from entk_helpers.mode import own_defaults
from entk_helpers.progress import progress_bar
from entk_helpers.testbeds.checks import check, check_epochs, check_seeds

from .task import ModularRun, pairs, sums


class ModularMLP(nn.Module):
    """f(x) = (1/H) W2 (W1 x / sqrt(2p))^2, from (N, 2p) to (N, p), W1 (H, 2p) and W2 (p, H).

    Examples:
        >>> W1, W2 = torch.tensor([[2.0, 0.0, 2.0, 0.0]]), torch.tensor([[1.0], [3.0]])
        >>> model = ModularMLP(W1, W2)
        >>> model(pairs(2)).detach()  # z = 2, 1, 1, 0
        tensor([[ 4., 12.],
                [ 1.,  3.],
                [ 1.,  3.],
                [ 0.,  0.]])
    """

    def __init__(self, W1: Tensor, W2: Tensor):
        super().__init__()
        self.W1 = nn.Parameter(W1.detach().clone())
        self.W2 = nn.Parameter(W2.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (N, p) of the points x (N, 2p)."""
        width, n_inputs = self.W1.shape
        z = x @ self.W1.T / n_inputs**0.5
        return z.square() @ self.W2.T / width


def train_mlp(seed: int = 0, **settings) -> ModularRun:
    """One run; the settings are those of `train_mlp_seeds`.

    Examples:
        >>> run = train_mlp(seed=0, p=5, width=16, epochs=20)
        >>> run.inputs.shape, int(run.train.sum()), run.history["step"][-1]
        (torch.Size([25, 10]), 18, 20)
    """
    return train_mlp_seeds([seed], **settings)[0]


@own_defaults()
def train_mlp_seeds(
    seeds: Sequence[int],
    *,
    p: int = 29,
    width: int = 512,
    train_fraction: float = 0.7,
    epochs: int = 500,
    lr: float = 0.05,
    weight_decay: float = 0.01,
    shuffle_labels: bool = False,
    checkpoints: Collection[int] = (),
    device: torch.device | str | None = None,
    progress: bool = False,
) -> list[ModularRun]:
    """Independent runs, one for each seed.

    A seed determines a run's weights, all N(0, 1), and which pairs it trains on:
    round(train_fraction * p^2) of them. Full-batch AdamW in float32 minimises the mean
    over these pairs and the p outputs of the squared error. `shuffle_labels` is a control:
    weights and split stay as they are, but the p^2 labels are permuted at random.

    Returns a `ModularRun` per seed, in order. inputs: `pairs(p)`; targets: one-hot labels
    (p*p, p); train: the pairs seen. history: "step" and "train loss", "test loss",
    "train accuracy", "test accuracy", at every epoch; a step is an epoch. Test scores are NaN
    where all pairs are trained on. checkpoints: 0, those asked for, and `epochs`. `device`:
    the CPU unless given. Ordinary random state is neither read nor changed.

    Examples:
        >>> runs = train_mlp_seeds([0, 1], p=5, width=16, epochs=20, checkpoints=[10])
        >>> [sorted(run.checkpoints) for run in runs]
        [[0, 10, 20], [0, 10, 20]]
    """
    seeds, checkpoints = list(seeds), {int(step) for step in checkpoints}
    n_train = round(train_fraction * p * p) if 0 < train_fraction <= 1 else 0
    check(p >= 2, f"p is {p}; give at least 2")
    check_seeds(seeds)
    check(width >= 1, f"width is {width}; give at least 1")
    check(epochs >= 1, f"epochs is {epochs}; give at least 1")
    check(0 < lr < float("inf"), f"lr is {lr}; give a positive number")
    check(0 <= weight_decay < float("inf"), f"weight_decay is {weight_decay}; give a number >= 0")
    check(
        n_train > 0,
        f"train_fraction is {train_fraction}; give a share of the {p * p} pairs above 0 and up to 1, "
        "so large that one pair or more is in it",
    )
    check_epochs(checkpoints, epochs)
    kept = {0, *checkpoints, epochs}
    runs = []
    with progress_bar(len(seeds) * epochs, "modular addition", show=progress) as bar:
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            W1 = torch.randn(width, 2 * p, generator=generator, dtype=torch.float32)
            W2 = torch.randn(p, width, generator=generator, dtype=torch.float32)
            train = torch.zeros(p * p, dtype=torch.bool)
            train[torch.randperm(p * p, generator=generator)[:n_train]] = True
            labels = sums(p)
            if shuffle_labels:
                labels = labels[torch.randperm(p * p, generator=generator)]
            start = (t.to(device or "cpu") for t in (pairs(p), W1, W2, labels, train))
            x, W1, W2, labels, train = start
            history, states = _descend(W1, W2, labels, train, epochs, lr, weight_decay, kept, bar)
            y = nn.functional.one_hot(labels, p).to(x)
            runs.append(ModularRun(ModularMLP(**states[epochs]), x, y, history, states, train))
    return runs


def _descend(
    W1: Tensor,
    W2: Tensor,
    labels: Tensor,
    train: Tensor,
    epochs: int,
    lr: float,
    weight_decay: float,
    kept: set[int],
    bar,
) -> tuple[dict[str, list], dict[int, dict[str, Tensor]]]:
    """Train from W1 and W2 on; a run's history and checkpoints.

    All p^2 pairs go through the network, so that an epoch yields its test scores as well.
    """
    p = len(W2)
    network = _AllPairs(W1, W2)
    optimizer = torch.optim.AdamW([network.theta], lr=lr, weight_decay=weight_decay, fused=True)
    targets = nn.functional.one_hot(labels, p).T.to(W1)  # (p, p*p), as the outputs
    weight = train * (2 / (int(train.sum()) * p))
    losses, hits, states = [], [], {}
    for step in range(epochs + 1):
        if step in kept:
            states[step] = network.weights()
        f = network.outputs()
        hits.append(f.amax(0) == f.gather(0, labels[None])[0])  # argmax is slow
        error = f.sub_(targets)
        losses.append(error.square().mean(0))
        if step < epochs:
            network.theta.grad = network.gradient(error * weight)
            optimizer.step()
            bar.update()
    loss, hit = torch.stack(losses), torch.stack(hits).double()
    check(bool(loss[-1].isfinite().all()), f"lr is {lr}; training diverged, give less")
    history = {
        "step": list(range(epochs + 1)),
        "train loss": loss[:, train].mean(1).tolist(),
        "test loss": loss[:, ~train].mean(1).tolist(),
        "train accuracy": hit[:, train].mean(1).tolist(),
        "test accuracy": hit[:, ~train].mean(1).tolist(),
    }
    return history, states


IN_CACHE = 2**17
"""Numbers in a part of z, (pairs, H), which is computed twice an epoch rather than kept."""


class _AllPairs:
    """The network on all pairs, and the gradient for its weights, a few values of a at a time.

    x is one-hot, so that sqrt(2p) z of the pair (a, b) adds column b of W1 to column a.
    theta: (3p, H), one row for each a, each b and each output; changed from outside.
    """

    def __init__(self, W1: Tensor, W2: Tensor):
        p, width = W2.shape
        self.theta = torch.cat([W1.T, W2])
        left, self._right, self._out = self.theta.chunk(3)
        self._grad = torch.zeros_like(self.theta)
        dleft, self._dright, self._dout = self._grad.chunk(3)
        self._f, self._d = (W1.new_empty(p, p * p) for _ in range(2))
        self._scale = 1 / (2 * p * width)
        rows = min(p, max(1, IN_CACHE // (p * width)))
        z, dz = (W1.new_empty(rows, p, width) for _ in range(2))
        # Views, made once: some a, and what belongs to them and their pairs.
        self._parts = [
            (a[:, None], z[: len(a)], dz[: len(a)], f, d, da)
            for a, f, d, da in zip(
                left.split(rows),
                self._f.split(rows * p, dim=1),
                self._d.split(rows * p, dim=1),
                dleft.split(rows),
                strict=True,
            )
        ]

    def weights(self) -> dict[str, Tensor]:
        """W1 and W2, copied."""
        left, right, out = self.theta.clone().chunk(3)
        return {"W1": torch.cat([left.T, right.T], dim=1), "W2": out.clone()}

    def outputs(self) -> Tensor:
        """Outputs (p, p*p), in memory that the next call uses again."""
        out = self._out * self._scale
        for left, z, _, f, _, _ in self._parts:
            torch.add(left, self._right, out=z)
            torch.mm(out, z.square_().flatten(0, 1).T, out=f)
        return self._f

    def gradient(self, d: Tensor) -> Tensor:
        """Gradient for theta, given d (p, p*p), that for the outputs; memory is used again."""
        self._d.copy_(d)
        out = self._out * (2 * self._scale)
        self._dright.zero_()
        self._dout.zero_()
        for left, z, dz, _, d, dleft in self._parts:
            torch.add(left, self._right, out=z)
            torch.mm(d.T, out, out=dz.flatten(0, 1))
            torch.sum(dz.mul_(z), 1, out=dleft)
            self._dright.add_(dz.sum(0))
            self._dout.addmm_(d, z.square_().flatten(0, 1), alpha=self._scale)
        return self._grad
