"""What `memory=` is held to: peaks of a process, in MB, as JSON. Run by test_memory.

Each piece of work is done in little memory and in plenty, after a small one that makes the
libraries allocate what they keep.
"""

import json
import sys
from functools import partial

import torch
import transformers as hf
from torch import nn

from benchmarks.clock import timed
from entk_helpers import NTKOperator, empirical_ntk, jacobian, top_eigenpairs
from entk_helpers.language import LogitKernel

torch.set_num_threads(1)
torch.manual_seed(0)


class Squared(nn.Module):
    """Outputs are quadratic in the weight, so that its gradients have to be written out."""

    def __init__(self):
        super().__init__()
        self.W = nn.Parameter(torch.randn(10, 400) / 20)

    def forward(self, x):
        return torch.tanh(x @ (self.W * self.W).T)


MLP = nn.Sequential(
    nn.Linear(64, 300), nn.Tanh(), nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 4)
)
WEIGHT = torch.tensor([8.0, 2.0, 1.0, 1.0])  # so that one eigenvalue is far above the others
SQUARED = Squared()
LLAMA = hf.LlamaForCausalLM(hf.LlamaConfig(
    vocab_size=100, hidden_size=64, num_hidden_layers=2, intermediate_size=192,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32)).eval()  # fmt: skip


def product(operator):
    return operator @ torch.ones(operator.shape[0], 4)


# Name -> (the work, points).
WORK = {
    "kernel with structure": (lambda n, memory: empirical_ntk(
        MLP, torch.randn(n, 64), memory=memory), 1000),
    "kernel of all outputs": (lambda n, memory: empirical_ntk(
        MLP, torch.randn(n, 64), reduce="full", memory=memory), 400),
    "kernel without structure": (lambda n, memory: empirical_ntk(
        SQUARED, torch.randn(n, 400), memory=memory), 500),
    "jacobian": (lambda n, memory: jacobian(SQUARED, torch.randn(n, 400), memory=memory), 300),
    "product": (lambda n, memory: product(
        NTKOperator(MLP, torch.randn(n, 64), memory=memory)), 3000),
    "eigenpairs": (lambda n, memory: top_eigenpairs(
        NTKOperator(MLP, torch.rand(n, 64), class_weight=WEIGHT, memory=memory), 1).vectors, 3000),
    "product with logits": (lambda n, memory: product(
        LogitKernel(LLAMA, torch.randint(3, 100, (n, 12)), layer=0, memory=memory)), 600),
}  # fmt: skip


def peaks(work, n: int, little: str, plenty: str) -> dict[str, float]:
    work(20, little)
    bounded, free = (timed(partial(work, n, memory), 1) for memory in (little, plenty))
    return {
        "result": bounded.answer.nbytes / 1e6,
        "little": bounded.peak_mb,
        "plenty": free.peak_mb,
    }


if __name__ == "__main__":
    print(json.dumps({name: peaks(*what, *sys.argv[1:]) for name, what in WORK.items()}))
