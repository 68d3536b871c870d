"""The mode in which gradients are taken, whatever mode the caller is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

AUTOCAST = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def full_precision() -> Iterator[None]:
    """Autocast off: products of matrices keep the precision of their arguments."""
    with ExitStack() as stack:
        for device in filter(torch.is_autocast_enabled, AUTOCAST):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def constant() -> Iterator[None]:
    """Autocast off, for results that come out without a graph.

    Raises ValueError inside a transform of torch.func, whose derivative of the result would be zero.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise ValueError(
            "called inside a transform of torch.func (vmap, grad, jvp, jacrev, ...): what comes out "
            "follows from copies of its inputs, so that it has no derivative; call it outside"
        )
    with full_precision():
        yield


@contextmanager
def own_mode() -> Iterator[None]:
    """Gradients on; inference mode, autocast and the search for anomalies off, as it cannot be batched.

    As a decorator, for a whole function. Raises ValueError as `constant` does.

    Examples:
        >>> with torch.inference_mode(), own_mode():
        ...     print(torch.is_inference_mode_enabled(), torch.is_grad_enabled())
        False True
    """
    anomalies = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    with constant(), torch.inference_mode(False), torch.enable_grad():
        torch.set_anomaly_enabled(False)
        try:
            yield
        finally:
            torch.set_anomaly_enabled(*anomalies)


@contextmanager
def own_defaults() -> Iterator[None]:
    """As `own_mode`, and new tensors are float32 on the CPU, whatever the caller's defaults are.

    For what runs no model of the caller's: random numbers of another dtype are other numbers.

    Examples:
        >>> with torch.device("meta"), own_defaults():
        ...     torch.zeros(1)
        tensor([0.])
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(own_mode())
        if torch.get_default_device() != torch.device("cpu"):  # watches every call of torch
            stack.enter_context(torch.device("cpu"))
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        yield
