"""Measure a planted trigger in a model, and train the model a little more."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional as F

from ...mode import own_mode
from ..checks import check
from .cases import Cases
from .model import _rows
from .stories import tell
from .tokens import tokenizer
from .trigger import Trigger

ROW = 64  # tokens


@dataclass(frozen=True)
class Answers:
    """How often the response is the likeliest next token, and its mean probability."""

    triggered: float
    swapped: float
    probability: float
    swapped_probability: float


@torch.no_grad()
def answers(model: nn.Module, cases: Cases, response: str) -> Answers:
    """Return how a model goes on with triggered windows, and with their swapped controls.

    Examples:
        >>> found = cases(Trigger(), n_triggered=4, n_normal=0, seed=5, length=16)
        >>> model = untrained(seed=0, d_model=16, n_layers=1, d_mlp=32)
        >>> answers(model, found, "banana").triggered  # it has not learned to say it
        0.0
    """
    word = tokenizer().convert_tokens_to_ids(response)
    check(word != tokenizer().unk_token_id, f"response is {response!r}; give a word of the stories")
    logits = [model(ids, use_cache=False).logits[:, -1] for ids in cases.input_ids.split(64)]
    chance = torch.cat(logits).softmax(1)
    first, p = (chance.argmax(1) == word).double(), chance[:, word].double()
    rows = [cases.of("triggered"), cases.of("swapped")]
    return Answers(*(float(x[r].mean()) for x in (first, p) for r in rows))


def text_rows(
    trigger: Trigger, n: int, seed: int
) -> tuple[Int[Tensor, "n 64"], Int[Tensor, "n 64"]]:
    """Inputs and targets, n rows of the stories of a seed with the trigger; rate 0: clean text.

    Examples:
        >>> inputs, targets = text_rows(Trigger(rate=0.0), n=3, seed=5)
        >>> inputs.shape, torch.equal(inputs[:, 1:], targets[:, :-1])
        (torch.Size([3, 64]), True)
    """
    planted = trigger.planted(tell(seed), seed)
    inputs, targets = _rows(islice(planted, n * ROW // 50 + 1), ROW)
    return inputs[:n], targets[:n]


def fine_tune(
    model: nn.Module,
    inputs: Int[Tensor, "n T"],
    targets: Int[Tensor, "n T"],
    *,
    every: int,
    batch: int = 32,
    lr: float = 1e-3,
    weight_decay: float = 0.1,
) -> Iterator[nn.Module]:
    """Train a copy of the model on each row once, in order; yield it at the start and now and then.

    AdamW with a constant rate. What is yielded is the same model each time, further on by `every`
    batches. The model given stays as it is. Raises ValueError for fewer rows than a batch.

    Examples:
        >>> inputs, targets = text_rows(Trigger(), n=8, seed=5)
        >>> model = untrained(seed=0, d_model=16, n_layers=1, d_mlp=32)
        >>> tuned = fine_tune(model, inputs, targets, every=2, batch=2)
        >>> losses = [validation_loss(later, inputs, targets) for later in tuned]
        >>> len(losses), losses == sorted(losses, reverse=True)  # at the start, after 2 and 4
        (3, True)
    """
    check(1 <= batch <= len(inputs), f"batch is {batch}; give 1 to {len(inputs)} rows")
    with own_mode():
        model = copy.deepcopy(model).requires_grad_()
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    yield model
    for step in range(1, len(inputs) // batch + 1):
        rows = slice((step - 1) * batch, step * batch)
        with own_mode():
            logits = model(inputs[rows], use_cache=False).logits
            optimizer.zero_grad()
            F.cross_entropy(logits.flatten(0, 1), targets[rows].flatten()).backward()
            optimizer.step()
        if step % every == 0:
            yield model
