"""Plans against the kernels themselves, and against multiplications counted by hand."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config

from entk_helpers.language.kernel import LogitKernel
from entk_helpers.language.models import gemma_3_270m_config
from entk_helpers.language.plan import matmul_rate, plan, weight_bytes

N, T = 6, 9
GEMMA = Gemma3TextConfig(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=40,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    sliding_window=4,
    layer_types=["sliding_attention", "full_attention"] * 2,
)
GPT2 = GPT2Config(vocab_size=50, n_embd=16, n_layer=3, n_head=2, n_positions=16)
CASES = [
    (GEMMA, 0, "mlp.down_proj"),
    (GEMMA, 2, "mlp.down_proj"),
    (GEMMA, 3, "mlp.down_proj"),
    (GEMMA, 2, "self_attn.v_proj"),
    (GEMMA, 3, "self_attn.k_proj"),
    (GPT2, 1, "mlp.c_proj"),
    (GPT2, 2, "mlp.c_proj"),
]
IDS = torch.randint(50, (N, T), generator=torch.Generator().manual_seed(0))


class Multiplications(TorchDispatchMode):
    """Counts two for each entry of the result of a matrix product and each term of its sum."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        assert name not in ("convolution", "_scaled_dot_product_flash_attention_for_cpu")
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            self.total += 2 * out.numel() * args[-1].shape[-2]
        return out


def kernel(config, layer, module, memory) -> LogitKernel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    return LogitKernel(model, IDS, layer=layer, module=module, memory=memory)


def planned(config, layer, module, memory):
    (found,) = plan(config, windows=N, length=T, layers=[layer], module=module, memory=memory)
    return found


@pytest.mark.parametrize(("config", "layer", "module"), CASES)
def test_a_kernel_multiplies_as_often_and_needs_as_much_as_planned(config, layer, module):
    expected = planned(config, layer, module, "1GiB")
    per_window = (expected.cached_bytes + expected.graph_bytes) // N
    enough = N * per_window + expected.graph_bytes // N
    for memory, mode in ((int(1.03 * enough), "kept"), (int(0.97 * enough), "recomputed")):
        expected = planned(config, layer, module, memory)
        assert expected.mode == mode
        real = kernel(config, layer, module, memory)
        assert real.kept == (mode == "kept")
        with Multiplications() as counted:
            real @ torch.randn(real.shape[0])
        assert counted.total == expected.flops_per_product


@pytest.mark.parametrize(("config", "layer", "module"), CASES[:3])
def test_less_memory_than_planned_is_refused(config, layer, module):
    least = planned(config, layer, module, "1GiB").least_bytes
    assert planned(config, layer, module, int(0.97 * least)).mode == "too large"
    kernel(config, layer, module, int(1.03 * least))
    with pytest.raises(ValueError, match="too small"):
        kernel(config, layer, module, int(0.97 * least))


def test_the_multiplications_of_the_real_gemma_are_those_counted_by_hand():
    windows, length, d, f, q, kv = 1024, 64, 640, 2048, 4 * 256, 256
    tokens = windows * length
    plans = plan(gemma_3_270m_config(), windows=windows, length=length, memory="200GiB")
    assert [p.layer for p in plans] == list(range(18))
    assert {p.mode for p in plans} == {"kept"}
    metric = 2 * 2 * windows * d * d
    scores = 2 * windows * q * length * length  # Q K^T of all heads; as many for P V
    layer = 2 * (2 * tokens * (2 * d * q + 2 * d * kv + 3 * d * f) + 4 * scores)
    # Keys and values at all places; queries, scores and the rest at the last one.
    last = 2 * 2 * (tokens * 2 * d * kv + windows * (2 * d * q + 3 * d * f)) + 8 * scores / length
    assert plans[17].flops_per_product == 4 * windows * d * f + metric
    assert plans[16].flops_per_product == 4 * tokens * d * f + metric + last
    for number in range(16):
        step = plans[number].flops_per_product - plans[number + 1].flops_per_product
        assert step == layer
    # 268 M parameters, of which 168 M are the embedding, which is the unembedding too.
    assert weight_bytes(gemma_3_270m_config()) == pytest.approx(4 * 268.1e6, rel=1e-3)


def test_a_process_of_two_has_half_the_work():
    whole, half = (plan(GEMMA, windows=n, length=T, layers=[0, -1], memory="1GiB") for n in (8, 4))
    assert [p.layer for p in whole] == [0, 3]
    for a, b in zip(whole, half, strict=True):
        assert a.cached_bytes == 2 * b.cached_bytes
        assert a.graph_bytes == 2 * b.graph_bytes
        assert a.flops_per_product == 2 * b.flops_per_product
        assert a.flops == a.products * a.flops_per_product


def test_double_precision_takes_twice_the_bytes():
    single, double = (
        plan(GEMMA, windows=4, length=T, layers=[1], dtype=dtype)[0]
        for dtype in (torch.float32, torch.float64)
    )
    assert double.cached_bytes == 2 * single.cached_bytes
    assert double.flops_per_product == single.flops_per_product


def test_what_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"layer=4 does not exist.*0 to 3"):
        plan(GEMMA, windows=N, length=T, layers=[4])
    with pytest.raises(ValueError, match=r"module='mlp.down' is no linear map.*mlp.down_proj"):
        plan(GEMMA, windows=N, length=T, module="mlp.down")


def test_the_rate_of_this_machine_is_measured():
    rate = matmul_rate(torch.device("cpu"), seconds=0.02)
    assert 1e8 < rate < 1e14
