"""Small models of every kind, and the plainest possible way to their kernels.

The oracle shares no code with the package: one backward pass for each point and output.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RawMLP(nn.Module):
    """Raw parameters, as in the modular-addition network: (W1 x)^2 through W2."""

    def __init__(self):
        super().__init__()
        self.W1, self.W2 = nn.Parameter(torch.randn(7, 5)), nn.Parameter(torch.randn(3, 7))

    def forward(self, x):
        return ((x @ self.W1.T) ** 2) @ self.W2.T / 7


class ToySuperposition(nn.Module):
    """One matrix used twice, once transposed."""

    def __init__(self):
        super().__init__()
        self.W, self.b = nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.randn(5))

    def forward(self, x):
        return torch.relu(x @ self.W.T @ self.W + self.b)


class Square(nn.Module):
    """Square matrices, where a transpose does not show in the shape."""

    def __init__(self):
        super().__init__()
        self.A, self.B, self.C = (nn.Parameter(torch.randn(5, 5)) for _ in range(3))

    def forward(self, x):
        h = torch.tanh(x @ self.A.permute(0, 1))
        h = torch.tanh(self.B.transpose(0, 1) @ h.T).T
        return (h @ self.C + h @ self.C.t())[:, :3]


class Recycled(nn.Module):
    """The same linear map at three depths."""

    def __init__(self):
        super().__init__()
        self.map, self.out = nn.Linear(5, 5), nn.Linear(5, 2, bias=False)

    def forward(self, x):
        for _ in range(3):
            x = torch.tanh(self.map(x))
        return self.out(x)


class WeightNorms(nn.Module):
    """Parameters met outside of products too: a norm, W^T W, an elementwise product."""

    def __init__(self):
        super().__init__()
        self.W, self.V = nn.Parameter(torch.randn(5, 5)), nn.Parameter(torch.randn(3, 5))
        self.gain, self.unused = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(4))

    def forward(self, x):
        h = torch.tanh(x @ (self.W / self.W.norm())) * self.gain
        h = h + x @ (self.W.T @ self.W)
        return h @ self.V.T


class Hidden(nn.Module):
    """A gradient that the model itself stops: `detach` and `no_grad` uses do not count."""

    def __init__(self):
        super().__init__()
        self.W, self.V = nn.Parameter(torch.randn(5, 5)), nn.Parameter(torch.randn(3, 5))

    def forward(self, x):
        with torch.no_grad():
            shift = x @ self.W
        return (torch.tanh(x @ self.W) + shift + x @ self.W.detach()) @ self.V.T


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=1), nn.GELU(),
            nn.Conv2d(4, 4, (2, 1), groups=2, bias=False), nn.GroupNorm(2, 4), nn.Tanh(),
            nn.Conv2d(4, 3, 3, padding="same"), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)


class Signals(nn.Module):
    """1-d and transposed convolutions, batch norm in eval mode, a pooled read-out."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(2, 4, 3, dilation=2), nn.ConvTranspose1d(4, 3, 2)
        self.norm = nn.BatchNorm1d(4)
        self.norm.running_mean.normal_()

    def forward(self, x):
        return self.b(torch.relu(self.norm(self.a(x)))).mean(-1)


class TiedTransformer(nn.Module):
    """Integer inputs, embeddings tied to the read-out, einsum heads, layer norm."""

    def __init__(self, tied=True):
        super().__init__()
        d, heads, width, vocabulary = 6, 2, 3, 7
        self.embed = nn.Embedding(vocabulary, d)
        self.place = nn.Parameter(torch.randn(4, d))
        self.QKV = nn.Parameter(torch.randn(3, heads, d, width) / 2)
        self.Q = nn.Parameter(torch.randn(heads, d, width))
        self.O = nn.Parameter(torch.randn(heads, width, d))
        self.norm, self.up = nn.LayerNorm(d), nn.Linear(d, 8)
        self.down = nn.Linear(8, d)
        self.read = nn.Linear(d, vocabulary, bias=False)
        if tied:
            self.read.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens) + self.place[torch.arange(tokens.shape[1])]
        q = torch.einsum("btd,hdk->bhtk", self.norm(x), self.Q)
        k, v = (torch.einsum("btd,hdk->bhtk", self.norm(x), self.QKV[i]) for i in (1, 2))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + torch.einsum("bhtk,hkd->btd", mixed, self.O)
        x = x + self.down(F.relu(self.up(x)))
        return self.read(x[:, -1])


class Attention(nn.Module):
    """PyTorch's own attention and encoder layer (dropout in eval mode)."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.1, batch_first=True)
        self.read = nn.Linear(6, 2)

    def forward(self, x):
        return self.read(self.layer(x).mean(1))


class TimeFirst(nn.Module):
    """Moves time in front of the batch, so that rows are not sample-major."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = torch.tanh(self.a(x.transpose(0, 1).reshape(-1, 3)))
        return self.b(h.reshape(x.shape[1], len(x), 4).cumsum(0)[-1])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.read = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.read(self.rnn(x)[0][:, -1])


class Branching(nn.Module):
    """Control flow that depends on the data: nothing that vmap can follow."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x):
        rows = [self.a(r) if r.sum() > 0 else torch.tanh(self.b(r)) for r in x]
        return torch.stack(rows)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 3), nn.Bilinear(3, 2, 3)

    def forward(self, x, extra):
        return self.b(torch.tanh(self.a(x)), extra)


class PaddedEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4, padding_idx=0)
        self.read = nn.Parameter(torch.randn(4))

    def forward(self, tokens):
        h = torch.tanh(self.embed(tokens)).sum(1)
        return torch.stack([h @ self.read, self.read @ (h**2).T], dim=1)


def gpt2() -> nn.Module:
    """Hugging Face's GPT-2: `Conv1D` products through addmm, tied embeddings, its own masks."""
    from transformers import GPT2Config, GPT2LMHeadModel

    class LastLogits(nn.Module):
        def __init__(self):
            super().__init__()
            self.lm = GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=9,
                    n_positions=8,
                    n_embd=6,
                    n_layer=2,
                    n_head=2,
                    attn_implementation="eager",
                )
            )

        def forward(self, input_ids):
            return self.lm(input_ids=input_ids, use_cache=False).logits[:, -1]

    return LastLogits()


def _vectors(n):
    return torch.randn(n, 5)


def _tokens(vocabulary, length):
    return lambda n: torch.randint(0, vocabulary, (n, length))


ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[[int], object]]] = {
    "raw parameters": (RawMLP, _vectors),
    "used twice, transposed": (ToySuperposition, _vectors),
    "square matrices": (Square, _vectors),
    "reused layer": (Recycled, _vectors),
    "norms of weights": (WeightNorms, _vectors),
    "stopped gradients": (Hidden, _vectors),
    "convolutions": (Convolutions, lambda n: torch.randn(n, 2, 7, 6)),
    "signals": (Signals, lambda n: torch.randn(n, 2, 9)),
    "tied transformer": (TiedTransformer, _tokens(7, 4)),
    "untied transformer": (lambda: TiedTransformer(tied=False), _tokens(7, 4)),
    "attention modules": (Attention, lambda n: torch.randn(n, 4, 6)),
    "time first": (TimeFirst, lambda n: torch.randn(n, 4, 3)),
    "recurrent": (Recurrent, lambda n: torch.randn(n, 4, 3)),
    "tuple input": (TwoInputs, lambda n: (torch.randn(n, 5), torch.randn(n, 2))),
    "dict input": (TwoInputs, lambda n: {"x": torch.randn(n, 5), "extra": torch.randn(n, 2)}),
    "padding index": (PaddedEmbedding, _tokens(6, 3)),
    "GPT-2": (gpt2, _tokens(9, 5)),
}


class Bag(nn.Module):
    """Bags of words, whose gradients have no derivative of their own."""

    def __init__(self, mode: str = "mean"):
        super().__init__()
        self.words, self.out = nn.EmbeddingBag(6, 4, mode=mode), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.words(x)))


class Checkpointed(nn.Module):
    """Activations of the middle are computed a second time on the way back."""

    def __init__(self, reentrant: bool):
        super().__init__()
        self.below = nn.Sequential(nn.Linear(5, 7), nn.Tanh())
        self.out, self.reentrant = nn.Linear(7, 3), reentrant

    def forward(self, x):
        from torch.utils.checkpoint import checkpoint

        # The oracle's way back is not one that the reentrant kind can go.
        reentrant = self.reentrant and not x.requires_grad
        return self.out(checkpoint(self.below, x, use_reentrant=reentrant))


class Packed(nn.Module):
    """Hands its outputs over in an object, as models of Hugging Face do."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(5, 3)

    def forward(self, x):
        from transformers.modeling_outputs import SequenceClassifierOutput

        return SequenceClassifierOutput(logits=torch.tanh(self.map(x)))


AWKWARD: dict[str, tuple[Callable[[], nn.Module], Callable[[int], object]]] = {
    "bag of words, mean": (Bag, _tokens(6, 3)),
    "bag of words, sum": (lambda: Bag("sum"), _tokens(6, 3)),
    "bag of words, max": (lambda: Bag("max"), _tokens(6, 3)),
    "checkpointed": (lambda: Checkpointed(reentrant=False), _vectors),
    "checkpointed, reentrant": (lambda: Checkpointed(reentrant=True), _vectors),
    "packed": (Packed, _vectors),
    "for several devices": (lambda: nn.DataParallel(RawMLP()), _vectors),
}


def build(name: str, n: int = 6, *, dtype=torch.float64, seed: int = 0):
    """(model in eval mode, n points) of a kind, without touching the caller's random state."""
    make_model, make_points = (ZOO | AWKWARD)[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, points = make_model().to(dtype).eval(), make_points(n)
    cast = lambda t: t.to(dtype) if t.is_floating_point() else t  # noqa: E731
    if isinstance(points, dict):
        return model, {key: cast(t) for key, t in points.items()}
    return model, tuple(map(cast, points)) if isinstance(points, tuple) else cast(points)


def plain_jacobian(model: nn.Module, points) -> dict[str, Tensor]:
    """name -> (N, C, P): a backward pass for each point and output."""
    if isinstance(points, dict):
        rows = [
            model(**{k: t[i : i + 1] for k, t in points.items()})
            for i in range(len(next(iter(points.values()))))
        ]
    elif isinstance(points, tuple):
        rows = [model(*(t[i : i + 1] for t in points)) for i in range(len(points[0]))]
    else:
        rows = [model(points[i : i + 1]) for i in range(len(points))]
    names, params = zip(*model.named_parameters(), strict=True)
    found = [
        torch.autograd.grad(f, params, retain_graph=True, allow_unused=True)
        for row in rows for f in row[0]
    ]  # fmt: skip
    n, c = len(rows), rows[0].shape[1]
    return {
        name: torch.stack(
            [(torch.zeros_like(p) if g[i] is None else g[i]).flatten() for g in found]
        ).reshape(n, c, -1)
        for i, (name, p) in enumerate(zip(names, params, strict=True))
    }


def plain_kernel(J: dict[str, Tensor], J2: dict[str, Tensor]) -> dict[str, Tensor]:
    """name -> (N, M, C, C)."""
    return {name: torch.einsum("ncp,mdp->nmcd", J[name], J2[name]) for name in J}


def reduced(K: Tensor, reduce: str) -> Tensor:
    """Each reduction of the full kernel, from its definition."""
    if reduce == "full":
        return K
    if reduce == "per_class":
        return torch.stack([K[:, :, c, c] for c in range(K.shape[2])])
    if reduce == "class_averaged":
        return torch.stack([K[:, :, c, c] for c in range(K.shape[2])]).mean(0)
    return K.mean((2, 3))


def relative(got: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected entry; the shapes must agree."""
    assert got.shape == expected.shape
    if got.numel() == 0:
        return 0.0
    return ((got - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()
