"""The systems under study, trained from scratch: each `train` returns a `Run`.

Nothing here knows about kernels.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Run:
    """A trained model with everything needed to study how it got there.

    model: in its final state, on the device it was trained on; `model(inputs)` is (N, C).
    inputs, targets: the fixed training data, (N, ...) and (N, C) or (N,).
    history: name -> list; the lists are equally long and one of them is "step".
    checkpoints: step -> state dict; the untrained model is step 0.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    history: Mapping[str, list]
    checkpoints: Mapping[int, dict[str, Tensor]]

    def reaches(self, name: str, level: float) -> int | None:
        """The first step at which a quantity of the history is at least `level`; None if never."""
        steps = zip(self.history["step"], self.history[name], strict=True)
        return next((step for step, value in steps if value >= level), None)

    def at(self, step: int) -> nn.Module:
        """A copy of the model as it was at a checkpoint; `model` itself is left alone."""
        if step not in self.checkpoints:
            raise ValueError(
                f"step is {step}, but checkpoints exist for {sorted(self.checkpoints)}"
            )
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.checkpoints[step])
        return model
