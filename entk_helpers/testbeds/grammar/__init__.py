"""A language with a known grammar, and a small Gemma that learns it.

`stories` draws texts whose words come with tags and features, `tokens` has the tokenizer, `model`
the network. Importing this needs no transformers; calling `tokenizer` or what follows it does.
"""

from .model import GrammarSettings, load, save, train, untrained, validation_loss
from .stories import stories, tell, vocabulary
from .tokens import tokenizer

__all__ = [
    "GrammarSettings",
    "load",
    "save",
    "stories",
    "tell",
    "tokenizer",
    "train",
    "untrained",
    "validation_loss",
    "vocabulary",
]
