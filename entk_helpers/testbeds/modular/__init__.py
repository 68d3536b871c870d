"""Modular addition: networks that learn a + b mod p from some of the pairs.

`mlp` is one hidden layer of squares, `transformer` one layer of attention and a ReLU MLP;
`task` is what they share.
"""

from entk_helpers.mode import own_defaults

from .mlp import ModularMLP, train_mlp, train_mlp_seeds
from .task import ModularRun, pairs, sums, tokens
from .transformer import (
    ModularTransformer,
    TransformerSettings,
    load_transformer,
    save_transformer,
    train_transformer,
    train_transformer_seeds,
)

# Here and not where they are defined, since shipped networks are bound to that code.
train_transformer = own_defaults()(train_transformer)
train_transformer_seeds = own_defaults()(train_transformer_seeds)

__all__ = [
    "ModularMLP",
    "ModularRun",
    "ModularTransformer",
    "TransformerSettings",
    "load_transformer",
    "pairs",
    "save_transformer",
    "sums",
    "tokens",
    "train_mlp",
    "train_mlp_seeds",
    "train_transformer",
    "train_transformer_seeds",
]
