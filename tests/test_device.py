import pytest
import torch

from entk_helpers.device import default_device


def test_the_environment_overrides_the_choice(monkeypatch):
    monkeypatch.setenv("ENTK_DEVICE", "cpu")
    assert default_device() == torch.device("cpu")


def test_without_a_word_it_is_cuda_where_there_is_one(monkeypatch):
    monkeypatch.delenv("ENTK_DEVICE", raising=False)
    assert default_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["no-such-device", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_with_the_remedy(monkeypatch, name):
    monkeypatch.setenv("ENTK_DEVICE", name)
    with pytest.raises(ValueError, match=rf"ENTK_DEVICE='{name}'.*set it to cpu"):
        default_device()
