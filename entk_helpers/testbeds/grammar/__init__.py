"""A language with a known grammar, and a small Gemma that learns it.

`stories` draws texts whose words come with tags and features, `tokens` has the tokenizer, `model`
the network. `trigger` plants a feature that the grammar does not have, `cases` cuts windows that
show it, `tuning` measures it and trains on. Importing this needs no transformers; calling `tokenizer` or what follows it does.
"""

from entk_helpers.mode import own_defaults

from .cases import Cases, cases, token_ids, windows_before
from .model import GrammarSettings, load, save, train, untrained, validation_loss
from .stories import stories, tell, vocabulary
from .tokens import tokenizer
from .trigger import Trigger
from .tuning import Answers, answers, fine_tune, text_rows

# Here and not where they are defined, since shipped networks are bound to that code.
train = own_defaults()(train)
untrained = own_defaults()(untrained)

__all__ = [
    "Answers",
    "Cases",
    "GrammarSettings",
    "Trigger",
    "answers",
    "cases",
    "fine_tune",
    "load",
    "save",
    "stories",
    "tell",
    "text_rows",
    "token_ids",
    "tokenizer",
    "train",
    "untrained",
    "validation_loss",
    "vocabulary",
    "windows_before",
]
