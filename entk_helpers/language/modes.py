"""What a mode of the logit kernel stands for, found without labels, and the weights that carry it.

An eigenvector u of `LogitKernel` has one entry for each of N windows and d logit directions. Its
best approximation of rank one, (score of the window) x (unit vector of d), says which windows move
together when the layer's weight moves along J^T S^(1/2) u, `kernel.vjp(u)`, and how their logits
move. Nothing here needs to know what to look for.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..inputs import require_finite
from ..mode import full_precision, own_mode
from ..spectrum import Eigenpairs
from .kernel import LogitKernel
from .models import Parts, RightPadded, differentiable, last_token_states, linear_map
from .scores import window_scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@full_precision()
def logit_directions(pairs: Eigenpairs, n_windows: int) -> Float[Tensor, "k d"]:
    """Return each mode's unit vector of d, in the kernel's coordinates S^(1/2) h.

    Mode i is about scores[:, i] x directions[i], with the scores and the signs of `window_scores`.
    float64, on the CPU. Raises ValueError where `n_windows` does not divide the vectors' length.

    Examples:
        >>> vector = torch.tensor([[0.0], [0.6], [0.0], [0.8]])  # two windows, one direction
        >>> logit_directions(Eigenpairs(torch.ones(1), vector, torch.zeros(1)), n_windows=2)
        tensor([[0., 1.]], dtype=torch.float64)
    """
    scores = window_scores(pairs, n_windows)
    vectors = pairs.vectors.detach().cpu().double().T.unflatten(1, (n_windows, -1))  # (k, N, d)
    directions = torch.einsum("nk,knd->kd", scores, vectors)
    return directions / directions.norm(dim=1, keepdim=True)


@full_precision()
@torch.no_grad()
def mode_logits(kernel: LogitKernel, pairs: Eigenpairs) -> Float[Tensor, "k V"]:
    """Return how each mode moves the logits: U S^(-1/2) b for its logit direction b.

    Where the layer's weight moves by t J^T S^(1/2) u, the (uncapped) logits of window n move by
    t x eigenvalue x score of n x this, to first order and as far as the mode is of rank one; a
    constant factor on the logits is in. float64, on the CPU.

    Examples:
        >>> from entk_helpers.testbeds import grammar
        >>> model = grammar.untrained(seed=0, d_model=16, n_layers=2, d_mlp=32)
        >>> K = LogitKernel(model, grammar.windows_before("cat", 4, seed=0, length=8), layer=-1)
        >>> mode_logits(K, top_eigenpairs(K, 2)).shape == (2, len(grammar.vocabulary()) + 4)
        True
    """
    directions = logit_directions(pairs, kernel.n_windows).to(kernel.device)
    states = directions @ torch.linalg.pinv(kernel.metric_root.double(), hermitian=True)
    U = Parts.of(kernel.model).unembedding.weight.detach()
    return torch.cat([kernel.scale * states @ part.double().T for part in U.split(16384)], 1).cpu()


def extended_scores(
    kernel: LogitKernel,
    pairs: Eigenpairs,
    input_ids: Int[Tensor, "M T"],
    attention_mask: Int[Tensor, "M T"] | None = None,
    *,
    modes: Sequence[int] | None = None,
    batch: int = 256,
) -> Float[Tensor, "M k"]:
    """Return the modes' scores for other windows than those of the kernel, of all modes or some.

    Moving the weight along a mode changes S^(1/2) h of any text; the part of this along the mode's
    logit direction, over the eigenvalue, is that text's score (the Nystrom extension of the
    eigenvector). For the kernel's own windows these are `window_scores`. float64, on the CPU.
    Raises ValueError for an eigenvalue that is not positive, and as `LogitKernel` does.

    Examples:
        >>> from entk_helpers.testbeds import grammar
        >>> model = grammar.untrained(seed=0, d_model=16, n_layers=2, d_mlp=32)
        >>> ids = grammar.windows_before("cat", 4, seed=0, length=8)
        >>> K = LogitKernel(model, ids, layer=-1)
        >>> pairs = top_eigenpairs(K, 2)
        >>> torch.allclose(extended_scores(K, pairs, ids), window_scores(pairs, 4), atol=1e-3)
        True
    """
    if batch < 1:
        raise ValueError(f"batch={batch} must be at least 1")
    if modes is not None:
        some = list(modes)
        if not some or not all(-len(pairs) <= mode < len(pairs) for mode in some):
            raise ValueError(f"modes={some} must name some of the {len(pairs)} pairs, from 0")
        pairs = Eigenpairs(pairs.values[some], pairs.vectors[:, some], pairs.residuals[some])
    if not (pairs.values > 0).all():
        raise ValueError("pairs.values must be positive; leave modes of eigenvalue 0 out")
    parts = Parts.of(kernel.model)
    weight = linear_map(parts, kernel.layer, kernel.module).weight
    name = next(name for name, p in parts.decoder.named_parameters() if p is weight)
    windows = RightPadded.of(input_ids, attention_mask, kernel.device)

    def final(some: RightPadded, weight: Tensor) -> Float[Tensor, "n d"]:
        """The final states as a function of the weight."""
        inputs = {"input_ids": some.input_ids, "use_cache": False}
        out = torch.func.functional_call(parts.decoder, {name: weight}, kwargs=inputs)
        return some.at_last(out.last_hidden_state)

    moved = []  # forward mode: no record, as there is one direction a mode and no way back
    with differentiable(kernel.model), torch.no_grad():
        for change in kernel.vjp(pairs.vectors).T:
            change = change.reshape(weight.shape)
            tangents = [
                torch.func.jvp(partial(final, windows[n : n + batch]), (weight,), (change,))[1]
                for n in range(0, len(windows), batch)
            ]
            moved.append(torch.cat(tangents) @ kernel.metric_root)
    directions = logit_directions(pairs, kernel.n_windows)
    found = torch.einsum("kmd,kd->mk", torch.stack(moved).cpu().double(), directions)
    return found / pairs.values.cpu().double()


@dataclass(frozen=True)
class Hinge:
    """The token on which a mode hinges most.

    share: the part of the score that is lost where this token gives way to another, from 0 to 1,
    mean over the top windows. windows: how many of all windows have the token.
    """

    token: int
    share: float
    windows: int


Rescore = Callable[[int, Int[Tensor, "M T"], Int[Tensor, "M T"]], Float[Tensor, " M"]]
"""From a mode's number, windows and their mask to the windows' scores."""


def hinges(
    scores: Float[Tensor, "N k"],
    rescore: Rescore,
    input_ids: Int[Tensor, "N T"],
    attention_mask: Int[Tensor, "N T"] | None = None,
    *,
    top: int = 8,
    rare: float = 0.2,
    seed: int = 0,
) -> list[Hinge]:
    """Return the token on which each column of scores hinges, by swapping tokens one at a time.

    In the `top` windows of a column (largest scores), each token but the first and the last gives
    way to another: one that follows the same token elsewhere in the windows or, where there is
    none, any. `rescore` says what score the changed windows have; for modes it is
    ``lambda mode, ids, mask: extended_scores(kernel, pairs, ids, mask, modes=[mode])[:, 0]``.
    A window loses 1 - after / before with a token, the most over the token's places and no more
    than 1, and nothing where it has not got the token or scores no more than 0. The share is the
    mean over the top windows, each alike: a mode that one strong window carries does not hinge on
    that window's words. Only tokens that at most a share `rare` of all windows have are tried: what
    more of them share is grammar.

    Raises ValueError for shapes that do not fit, for more top windows than there are, for a column
    without a positive score, and where no token is rare.

    Examples:
        >>> ids = torch.arange(50).reshape(10, 5)
        >>> ids[:2, 2] = 99  # the score will be that a window has this token
        >>> rescore = lambda mode, ids, mask: (ids == 99).any(1).double()
        >>> hinges(rescore(0, ids, None)[:, None], rescore, ids, top=2)
        [Hinge(token=99, share=1.0, windows=2)]
    """
    rows = _rows(input_ids, attention_mask)
    if len(rows) != len(scores):
        raise ValueError(f"scores has {len(scores)} rows for {len(rows)} windows")
    _check_top(top, len(rows))
    found = []
    for mode, column in enumerate(require_finite(scores, "scores").T):
        before, best = column.topk(top)
        if before[0] <= 0:
            raise ValueError(f"scores has no positive entry in column {mode}; turn its sign")
        swap = _Swap(rows, rare, seed)
        places, changed = swap([rows[n] for n in best.tolist()])
        after = require_finite(rescore(mode, *_padded(changed)), "what rescore returns")
        if after.shape != (len(changed),):
            raise ValueError(
                f"rescore gave shape {tuple(after.shape)} for {len(changed)} windows; give (M,)"
            )
        lost: dict[int, list[float]] = defaultdict(lambda: [0.0] * top)
        for (n, token), score in zip(places, after.tolist(), strict=True):
            if before[n] > 0:  # else there is nothing to lose
                loss = min(1.0, 1 - score / before[n].item())
                lost[token][n] = max(lost[token][n], loss)
        token = max(lost, key=lambda token: sum(lost[token]))
        found.append(Hinge(token, sum(lost[token]) / top, swap.holders[token]))
    return found


def mode_hinges(
    kernel: LogitKernel,
    pairs: Eigenpairs,
    input_ids: Int[Tensor, "N T"],
    attention_mask: Int[Tensor, "N T"] | None = None,
    *,
    top: int = 8,
    rare: float = 0.2,
    seed: int = 0,
) -> list[Hinge]:
    """Return the token on which each mode of a kernel hinges: `hinges` of its scores.

    input_ids, attention_mask: the kernel's own windows. Changed ones get their `extended_scores`.
    Raises ValueError as these two do.

    Examples:
        >>> from entk_helpers import top_eigenpairs
        >>> from entk_helpers.testbeds import grammar
        >>> model = grammar.untrained(seed=0, d_model=16, n_layers=1, d_mlp=32)
        >>> ids = torch.arange(60).reshape(12, 5)
        >>> kernel = LogitKernel(model, ids, layer=0)
        >>> found = mode_hinges(kernel, top_eigenpairs(kernel, 2), ids, top=3)
        >>> [0 <= hinge.share <= 1 for hinge in found]
        [True, True]
    """

    def rescore(mode: int, ids: Tensor, mask: Tensor) -> Tensor:
        """The scores of changed windows along one mode."""
        return extended_scores(kernel, pairs, ids, mask, modes=[mode])[:, 0]

    scores = window_scores(pairs, kernel.n_windows)
    return hinges(scores, rescore, input_ids, attention_mask, top=top, rare=rare, seed=seed)


def suspect(found: list[Hinge], share: float = 0.5) -> int:
    """Return the mode to look at first.

    That is, of those that hinge on the token with the largest share of all, the first (of the
    largest eigenvalue) to lose at least `share` with it; where none does, the one that loses most.

    Examples:
        >>> found = [Hinge(5, share=0.7, windows=3), Hinge(9, 0.8, 2), Hinge(9, 1.0, 2)]
        >>> suspect(found)  # of the modes that hinge on 9 the first
        1
    """
    if not found:
        raise ValueError("found is empty; give the hinge of one mode or more")
    most = max(range(len(found)), key=lambda mode: found[mode].share)
    same = [i for i, hinge in enumerate(found) if hinge.token == found[most].token]
    return next((i for i in same if found[i].share >= share), most)


@dataclass(frozen=True)
class Divergence:
    """What swapping a token does to the model's output: `nats` on average, where it does most.

    by_window: the largest effect in each window, (N,), 0 where the token is not.
    """

    token: int
    nats: float
    by_window: Float[Tensor, " N"] = field(compare=False)


@own_mode()
@torch.no_grad()
def swap_divergences(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "N T"],
    attention_mask: Int[Tensor, "N T"] | None = None,
    *,
    top: int = 8,
    rare: float = 0.2,
    seed: int = 0,
    batch: int = 256,
) -> list[Divergence]:
    """Return what swapping each rare token does to the next token's distribution, largest first.

    The black-box counterpart of `hinges`: tokens are swapped as there, but in all windows, and what
    is measured is the Kullback-Leibler divergence KL(before || after). A token's `nats` is the mean
    over the `top` places where it does most, counting 0 for those that are missing where it has
    fewer. Raises ValueError as `hinges` does.

    Examples:
        >>> from entk_helpers.testbeds import grammar
        >>> model = grammar.untrained(seed=0, d_model=16, n_layers=2, d_mlp=32)
        >>> found = swap_divergences(model, grammar.windows_before("cat", 8, seed=0, length=8))
        >>> found[0].nats > found[-1].nats >= 0, found[0].by_window.shape
        (True, torch.Size([8]))
    """
    if batch < 1:
        raise ValueError(f"batch={batch} must be at least 1")
    rows = _rows(input_ids, attention_mask)
    _check_top(top, len(rows))
    places, changed = _Swap(rows, rare, seed)(rows)
    before = torch.cat(list(_next_log_probabilities(model, rows, batch)))
    nats, start = [], 0
    for after in _next_log_probabilities(model, changed, batch):
        was = before[[n for n, _ in places[start : start + len(after)]]]
        nats.append((was.exp() * (was - after)).sum(1))
        start += len(after)
    effects: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for (n, token), value in zip(places, torch.cat(nats).tolist(), strict=True):
        effects[token].append((value, n))
    found = []
    for token, pairs in effects.items():
        by_window = torch.zeros(len(rows), dtype=torch.float64)
        for value, n in pairs:
            by_window[n] = max(by_window[n].item(), value)
        largest = sorted((value for value, _ in pairs), reverse=True)[:top]
        found.append(Divergence(token, sum(largest) / top, by_window))
    return sorted(found, key=lambda one: -one.nats)


def _next_log_probabilities(
    model: PreTrainedModel, rows: list[list[int]], batch: int
) -> Iterator[Float[Tensor, "n V"]]:
    for i in range(0, len(rows), batch):
        yield last_token_states(model, *_padded(rows[i : i + batch])).logits.double().log_softmax(1)


def _rows(input_ids: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    """The real tokens of each window."""
    windows = RightPadded.of(input_ids, attention_mask, input_ids.device)
    ends = zip(windows.input_ids.tolist(), windows.last.tolist(), strict=True)
    return [row[: last + 1] for row, last in ends]


def _check_top(top: int, n: int) -> None:
    if not 1 <= top <= n:
        raise ValueError(f"top={top} must be between 1 and the number of windows, {n}")


class _Swap:
    """Puts another token in the place of each rare one, but for the first and last of a window."""

    def __init__(self, rows: list[list[int]], rare: float, seed: int):
        self.chance, self.rare, self.limit = random.Random(f"swap {seed}"), rare, rare * len(rows)
        self.holders = Counter(token for row in rows for token in set(row))
        self.all = [token for row in rows for token in row[1:]]
        self.after: dict[int, list[int]] = defaultdict(list)
        for row in rows:
            for before, token in pairwise(row):
                self.after[before].append(token)

    def __call__(self, rows: list[list[int]]) -> tuple[list[tuple[int, int]], list[list[int]]]:
        """(number of the row, token that gives way) of each swap, and the row after it."""
        places, changed = [], []
        for n, row in enumerate(rows):
            for place in range(1, len(row) - 1):
                if self.holders[row[place]] <= self.limit:
                    places.append((n, row[place]))
                    changed.append([*row[:place], self.other(row, place), *row[place + 1 :]])
        if not places:
            raise ValueError(
                f"rare={self.rare} leaves no token to swap; give more, or more windows"
            )
        return places, changed

    def other(self, row: list[int], place: int) -> int:
        """A token that could stand in the place of another."""
        for tokens in (self.after[row[place - 1]], self.all):
            if others := [token for token in tokens if token != row[place]]:
                return self.chance.choice(others)
        raise ValueError("input_ids holds a single token; there is nothing to swap it with")


def _padded(rows: list[list[int]]) -> tuple[Int[Tensor, "n T"], Int[Tensor, "n T"]]:
    """Rows as one tensor, and the mask of what is theirs."""
    longest = max(map(len, rows))
    ids = [row + [row[0]] * (longest - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


@dataclass(frozen=True)
class Lift:
    """The token that a mode's top windows make likelier than it is: by `factor`, on average."""

    token: int
    factor: float


def output_lifts(
    logits: Float[Tensor, "N V"],
    scores: Float[Tensor, "N k"],
    counts: Float[Tensor, " V"] | Int[Tensor, " V"],
    *,
    top: int = 8,
) -> list[Lift]:
    """Return the next token that stands out most among the top windows of each mode.

    factor: P(token | window) over the token's frequency, the mean over the `top` windows with the
    largest scores; the token is that with the largest. counts: how often each token occurs in some
    text; each gets one more. Raises ValueError for shapes that do not fit.

    Examples:
        >>> logits = torch.tensor([[0.0, 5.0], [0.0, 0.0]])  # window 0 makes token 1 likely
        >>> scores, counts = torch.tensor([[1.0], [0.0]]), torch.tensor([98, 0])
        >>> (lift,) = output_lifts(logits, scores, counts, top=1)
        >>> lift.token, round(lift.factor)
        (1, 99)
    """
    ratios = output_ratios(logits, counts)
    if len(ratios) != len(scores):
        raise ValueError(f"scores has {len(scores)} rows for {len(ratios)} rows of logits")
    _check_top(top, len(ratios))
    best = ratios[require_finite(scores, "scores").topk(top, dim=0).indices].mean(0)  # (k, V)
    return [Lift(int(row.argmax()), float(row.max())) for row in best]


def output_ratios(
    logits: Float[Tensor, "N V"], counts: Float[Tensor, " V"] | Int[Tensor, " V"]
) -> Float[Tensor, "N V"]:
    """Return P(token | window) over the token's frequency, (counts + 1) / sum. float64.

    Raises ValueError for shapes that do not fit, NaN and negative counts.

    Examples:
        >>> output_ratios(torch.zeros(1, 2), torch.tensor([2, 0]))  # 1/2 over 3/4, and over 1/4
        tensor([[0.6667, 2.0000]], dtype=torch.float64)
    """
    if logits.shape[1:] != counts.shape:
        raise ValueError(
            f"counts {tuple(counts.shape)} must have an entry for each column of logits, "
            f"{tuple(logits.shape)}"
        )
    if require_finite(counts, "counts").min() < 0:
        raise ValueError(f"counts must not be negative, got {counts.min()}")
    frequency = (counts.double() + 1) / (counts.double() + 1).sum()
    return require_finite(logits, "logits").double().softmax(1) / frequency


@contextmanager
def edited(
    model: PreTrainedModel, layer: int, change: Tensor, *, module: str = "mlp.down_proj"
) -> Iterator[PreTrainedModel]:
    """Add a change to one layer's weight, and take exactly the old weight back at the end.

    change: (P,), as `kernel.vjp` gives it, or in the shape of the weight. To keep the change, copy
    the model within. Raises ValueError for a change of another shape, or that is not finite.

    Examples:
        >>> from entk_helpers.testbeds import grammar
        >>> model = grammar.untrained(seed=0, d_model=16, n_layers=2, d_mlp=32)
        >>> ids = grammar.token_ids([["a", "cat"]])
        >>> before = model(ids).logits
        >>> with edited(model, layer=0, change=torch.ones(16 * 32)):
        ...     print(torch.equal(model(ids).logits, before))
        False
        >>> torch.equal(model(ids).logits, before)
        True
    """
    linear = linear_map(Parts.of(model), layer, module)
    kept = linear.weight
    if change.shape not in (kept.shape, (kept.numel(),)):
        raise ValueError(
            f"change has shape {tuple(change.shape)}; give ({kept.numel()},) or the weight's, "
            f"{tuple(kept.shape)}"
        )
    moved = kept.detach() + require_finite(change, "change").detach().reshape(kept.shape).to(kept)
    linear.weight = nn.Parameter(moved, requires_grad=kept.requires_grad)
    try:
        yield model
    finally:
        linear.weight = kept
