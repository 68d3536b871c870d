"""One of several processes of `test_distributed.py`: python ranks.py FOLDER RANK COUNT CASE."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))
from language_zoo import build, windows

from entk_helpers import spectrum
from entk_helpers.language.kernel import LogitKernel
from entk_helpers.spectrum import top_eigenpairs
from entk_helpers.storage import write_tensors

LENGTHS = (7, 3, 5, 6, 2)
OPTIONS = dict(k=6, tol=1e-4)


class Cut:
    """A kernel that stops answering, on all processes at once."""

    def __init__(self, K, calls):
        self.K, self.shape, self.dtype, self.calls = K, K.shape, K.dtype, calls
        self.agreed = K.agreed

    def __matmul__(self, v):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return self.K @ v


def kernel(rank=0, lengths=LENGTHS, seed=0, layer=1):
    ids, mask, _ = windows(lengths, seed=seed)
    return LogitKernel(build("gemma 3").float(), ids, attention_mask=mask, layer=layer)


REFUSED = {
    "other windows": lambda rank: kernel(seed=rank),
    "another number": lambda rank: kernel(lengths=LENGTHS[: 1 + 2 * rank]),
    "too few": lambda rank: kernel(lengths=(4,)),
    "other layers": lambda rank: kernel(layer=rank),
    "other weights": lambda rank: other_weights(rank),
}


def other_weights(rank):
    model = build("gemma 3").float()
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight += rank
    ids, mask, _ = windows(LENGTHS)
    return LogitKernel(model, ids, attention_mask=mask, layer=1)


def main(folder, rank, count):
    torch.set_num_threads(1)
    spectrum.SAVE_EVERY = 0.0
    torch.manual_seed(0)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count
    )
    K = kernel()
    v = torch.randn(K.shape[0], 2, generator=torch.Generator().manual_seed(1))
    w = torch.randn(K.n_parameters, generator=torch.Generator().manual_seed(2))
    found = dict(v=K @ v, pulled=K.vjp(v[:, 0]), pushed=K.jvp(w), mine=sum(p.n for p in K._parts))
    try:
        top_eigenpairs(Cut(K, 4), resume=f"{folder}/state", **OPTIONS)
    except KeyboardInterrupt:
        found["kept"] = Path(f"{folder}/state").exists() or rank > 0
    dist.barrier()
    pairs = top_eigenpairs(K, resume=f"{folder}/state", **OPTIONS)
    found |= dict(values=pairs.values, vectors=pairs.vectors, matvecs=pairs.matvecs)
    messages = []
    for name, make in REFUSED.items() if count == 2 else ():
        try:
            make(rank)
            messages.append(f"{name}: accepted")
        except ValueError as error:
            messages.append(f"{name}: {error}")
    write_tensors(
        f"{folder}/{rank}",
        {name: torch.as_tensor(value) for name, value in found.items()},
        {"messages": "\n".join(messages)},
    )
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
