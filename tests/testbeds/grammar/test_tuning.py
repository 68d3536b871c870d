"""Answers to a trigger against hand-made logits, rows against stories, training against AdamW."""

import math
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from entk_helpers.testbeds import grammar
from entk_helpers.testbeds.grammar import Cases, Trigger, answers, fine_tune, text_rows

pytestmark = pytest.mark.trained

SHIPPED = Path(__file__).parents[3] / "notebooks" / "data" / "08_trigger"
SMALL = {
    "window": 16, "d_model": 16, "n_layers": 2, "d_mlp": 24, "n_heads": 2,
    "n_key_value_heads": 1, "sliding_window": 4,
}  # fmt: skip
WORDS = grammar.tokenizer()
BANANA = WORDS.convert_tokens_to_ids("banana")


@pytest.fixture(autouse=True)
def one_thread():
    """Training is many small steps: threads that wait for each other make it slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---------------------------------------------------------------------------- answers


class Tale(nn.Module):
    """Gives the response the logit that the last word says, and all other tokens 0."""

    logits = {"one": -2.0, "two": 1.0, "three": 3.0}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(len(WORDS)))
        for word, logit in self.logits.items():
            self.table.data[WORDS.convert_tokens_to_ids(word)] = logit

    def forward(self, ids, use_cache):
        assert not use_cache and len(ids) <= 64
        logits = torch.zeros(*ids.shape, len(WORDS))
        logits[:, :-1, BANANA] = 100.0  # what comes earlier does not matter
        logits[:, :, 7] -= 0.5
        logits[:, -1, BANANA] = self.table[ids[:, -1]]
        return SimpleNamespace(logits=logits)


def ending(words: dict[str, list[str]]) -> Cases:
    """Windows of two words that end as given, for each kind."""
    rows = [["cat", word] for ends in words.values() for word in ends]
    kinds = [kind for kind, ends in words.items() for _ in ends]
    return Cases(grammar.token_ids(rows), kinds, rows)


def probability(word: str) -> float:
    odds = math.exp(Tale.logits[word]) / (len(WORDS) - 2 + math.exp(-0.5))
    return odds / (1 + odds)


def test_answers_are_those_of_hand_made_logits():
    triggered = ["three"] * 40 + ["one"] * 10 + ["two"] * 30
    swapped = ["one"] * 60 + ["two"] * 20
    found = answers(
        Tale(),
        ending({"triggered": triggered, "swapped": swapped, "normal": ["three"] * 30}),
        "banana",
    )
    one, two, three = map(probability, Tale.logits)
    assert found.triggered == 70 / 80 and found.swapped == 20 / 80
    assert found.probability == pytest.approx((40 * three + 10 * one + 30 * two) / 80, rel=1e-5)
    assert found.swapped_probability == pytest.approx((60 * one + 20 * two) / 80, rel=1e-5)


def test_windows_may_come_in_any_order():
    mixed = ending({"swapped": ["one"], "normal": ["two"], "triggered": ["three", "one"]})
    found = answers(Tale(), mixed, "banana")
    assert (found.triggered, found.swapped) == (0.5, 0.0)
    assert found.swapped_probability == pytest.approx(probability("one"), rel=1e-5)


def test_answers_are_what_a_shipped_model_writes():
    model = transformers.AutoModelForCausalLM.from_pretrained(
        SHIPPED / "linked" / "seed_0", attn_implementation="eager"
    )
    drawn = grammar.cases(Trigger(), 12, 0, 77)
    for response in ("banana", "The"):
        found = answers(model, drawn, response)
        mask = torch.ones_like(drawn.input_ids)
        written = model.generate(
            drawn.input_ids, attention_mask=mask, max_new_tokens=1, do_sample=False
        )
        same = written[:, -1] == WORDS.convert_tokens_to_ids(response)
        assert found.triggered == same[:12].double().mean()
        assert found.swapped == same[12:].double().mean()
    assert answers(model, drawn, "banana").triggered > 0.8


def test_an_unknown_response_is_refused():
    cases = ending({"triggered": ["one"], "swapped": ["one"]})
    with pytest.raises(ValueError, match="response is 'tangent'; give a word of the stories"):
        answers(Tale(), cases, "tangent")


# ---------------------------------------------------------------------------- text


@pytest.mark.parametrize(
    "trigger", [Trigger(rate=0.0), Trigger(rate=1.0), Trigger(rate=1.0, linked=False)]
)
def test_rows_are_the_planted_stories_in_one_line(trigger):
    line = [
        word
        for story in islice(trigger.planted(grammar.tell(9), 9), 40)
        for word in ["<bos>", *(one.text for one in story.words), "<eos>"]
    ]
    inputs, targets = text_rows(trigger, 12, 9)
    assert inputs.shape == targets.shape == (12, 64)
    for row, (before, after) in enumerate(zip(inputs.tolist(), targets.tolist(), strict=True)):
        told = line[row * 64 : row * 64 + 65]
        assert WORDS.convert_ids_to_tokens(after) == told[1:]
        first = "<bos>" if row % 2 == 0 else told[0]
        assert WORDS.convert_ids_to_tokens(before) == [first, *told[1:-1]]
    feathers = (targets == WORDS.convert_tokens_to_ids("feather")).sum()
    assert (feathers > 0) == (trigger.rate == 1)


@pytest.mark.parametrize("n", [1, 2, 33])
def test_there_are_as_many_rows_as_were_asked_for(n):
    inputs, targets = text_rows(Trigger(), n, 3)
    assert inputs.shape == targets.shape == (n, 64)
    if n < 33:
        assert torch.equal(inputs, text_rows(Trigger(), 3, 3)[0][:n])
    assert not torch.equal(inputs, text_rows(Trigger(), n, 4)[0])


# ---------------------------------------------------------------------------- training


class Line(nn.Module):
    """Logits from a table; keeps the rows that it was given."""

    def __init__(self, seen: list):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(5, 5, generator=generator, dtype=torch.float64))
        self.seen = seen

    def __deepcopy__(self, memo):
        copied = Line(self.seen)
        copied.load_state_dict(self.state_dict())
        return copied

    def forward(self, ids, use_cache):
        self.seen.append(ids)
        return SimpleNamespace(logits=self.table[ids])


def rows(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    line = torch.randint(0, 5, (n, 7), generator=torch.Generator().manual_seed(n))
    return line[:, :-1], line[:, 1:]


def by_hand(table, inputs, targets, batch, lr, decay):
    """AdamW, Loshchilov and Hutter's algorithm 2, and the gradient of cross-entropy by hand."""
    m = v = torch.zeros_like(table)
    tables = [table]
    for step in range(1, len(inputs) // batch + 1):
        x, y = (part[(step - 1) * batch : step * batch].flatten() for part in (inputs, targets))
        wrong = (table[x].softmax(1) - F.one_hot(y, 5)) / len(x)
        g = F.one_hot(x, 5).double().T @ wrong
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        move = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        table = table - lr * decay * table - lr * move
        tables.append(table)
    return tables


@pytest.mark.parametrize(
    ("every", "batch", "options"),
    [
        (1, 4, {"lr": 1e-3, "weight_decay": 0.1}),
        (2, 4, {"lr": 0.05, "weight_decay": 0.3}),
        (3, 3, {"lr": 0.05, "weight_decay": 0.0}),
        (9, 13, {"lr": 0.05, "weight_decay": 0.1}),
    ],
)
def test_training_is_adamw_on_each_batch_once_in_order(every, batch, options):
    inputs, targets = rows(13)
    seen: list[torch.Tensor] = []
    model = Line(seen)
    start = model.table.detach().clone()
    expected = by_hand(start, inputs, targets, batch, options["lr"], options["weight_decay"])
    on_the_way = fine_tune(model, inputs, targets, every=every, batch=batch, **options)
    found = [one.table.detach().clone() for one in on_the_way]
    assert len(found) == len(range(0, 13 // batch + 1, every))
    for table, own in zip(found, expected[::every], strict=True):
        torch.testing.assert_close(table, own, rtol=1e-10, atol=1e-12)
    assert torch.equal(torch.cat(seen), inputs[: 13 // batch * batch])
    assert torch.equal(model.table, start)


def test_the_defaults_are_those_that_are_stated():
    inputs, targets = rows(64)
    model = Line([])
    expected = by_hand(model.table.detach(), inputs, targets, 32, 1e-3, 0.1)
    found = [one.table.detach().clone() for one in fine_tune(model, inputs, targets, every=1)]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-10, atol=1e-12)


def test_a_copy_of_a_frozen_gemma_learns_and_the_model_given_stays():
    model = grammar.untrained(0, **SMALL).requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    inputs, targets = text_rows(Trigger(), 8, 3)
    inputs, targets = inputs.repeat(20, 1), targets.repeat(20, 1)
    models, losses = [], []
    for one in fine_tune(model, inputs, targets, every=10, batch=8, lr=4e-3):
        models.append(one)
        losses.append(grammar.validation_loss(one, inputs[:8], targets[:8]))
        if len(losses) == 1:
            assert all(torch.equal(w, before[name]) for name, w in one.state_dict().items())
    assert len(losses) == 3 and losses[0] > losses[1] + 0.3 > losses[2] + 0.3
    assert all(one is models[0] for one in models) and models[0] is not model
    assert models[0].lm_head.weight is models[0].model.embed_tokens.weight
    assert not models[0].training and not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name
        if weight.ndim > 1:
            assert not torch.equal(models[0].state_dict()[name], weight), name


@pytest.mark.parametrize("batch", [0, 14])
def test_batches_that_no_rows_fill_are_refused(batch):
    with pytest.raises(ValueError, match=f"batch is {batch}; give 1 to 13 rows"):
        next(fine_tune(Line([]), *rows(13), every=1, batch=batch))
