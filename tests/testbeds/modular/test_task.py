"""The task of modular addition: pairs, tokens and answers, entry by entry."""

import pytest
import torch

from entk_helpers.testbeds import modular


def test_pairs_and_sums_are_ordered_by_a_then_b():
    x, labels = modular.pairs(5), modular.sums(5)
    assert x.shape == (25, 10) and labels.shape == (25,)
    for a in range(5):
        for b in range(5):
            assert x[a * 5 + b].nonzero().flatten().tolist() == [a, 5 + b]
            assert labels[a * 5 + b] == (a + b) % 5


def test_tokens_are_the_pairs_as_text():
    x, text = modular.pairs(5), modular.tokens(5)
    assert text.shape == (25, 3) and text.dtype == torch.long
    assert torch.equal(x[:, :5].argmax(1), text[:, 0])
    assert torch.equal(x[:, 5:].argmax(1), text[:, 1])
    assert (text[:, 2] == 5).all()


@pytest.mark.parametrize("function", [modular.pairs, modular.tokens, modular.sums])
def test_a_modulus_below_two_is_refused(function):
    with pytest.raises(ValueError, match="p is 1; give at least 2"):
        function(1)
