"""What the tests of language models share."""

import pytest
import torch
from torch import nn


@pytest.fixture
def exact(monkeypatch):
    """Norms and softmax in double precision: transformers takes them in float32 always.

    There a float64 mask overflows too, and a place in the padding that sees nothing gives NaN.
    """
    to, single, softmax = torch.Tensor.to, torch.Tensor.float, nn.functional.softmax

    def double(x):
        return x.dtype == torch.float64

    def stay(x, *args, **kwargs):
        down = double(x) and torch.float32 in (*args, *kwargs.values())
        return x if down else to(x, *args, **kwargs)

    def softly(x, dim=None, dtype=None, **kwargs):
        return softmax(x, dim=dim, dtype=None if double(x) else dtype, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", stay)
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x if double(x) else single(x))
    monkeypatch.setattr(nn.functional, "softmax", softly)
