"""Makes training round its weights eight times as coarsely; Python runs this where it starts.

With this folder on PYTHONPATH, float32 weights lose three of their 24 bits after each step of an
optimizer. No processor rounds like that: what holds here has room on those that nobody tried. The
same numbers are rounded to the same numbers, so that what must repeat bit by bit still does.
"""

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

LOST = 3  # bits


@torch.no_grad()
def coarsen(W: torch.Tensor) -> None:
    """Round to the nearest number that ends in zeros, in place."""
    if W.dtype == torch.float32:
        bits = W.contiguous().view(torch.int32)
        W.copy_(((bits + (1 << LOST - 1)) >> LOST << LOST).view(torch.float32))


def after_step(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
    """Coarsen all that the optimizer has just changed."""
    for group in optimizer.param_groups:
        for W in group["params"]:
            coarsen(W)


register_optimizer_step_post_hook(after_step)
