"""Where a chapter computes."""

from __future__ import annotations

import os

import torch


def default_device() -> torch.device:
    """The environment's ENTK_DEVICE ("cpu", "cuda:1") if set, else CUDA if there is one, else the CPU.

    Examples:
        >>> default_device().type in ("cpu", "cuda")
        True
    """
    name = os.environ.get("ENTK_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"ENTK_DEVICE={name!r} cannot be used here ({error}); set it to cpu, or unset it"
        ) from error
