"""The logit kernel against the Jacobian of the whole model by plain autograd."""

import copy
import gc
import inspect
import re
import resource
import sys
import weakref

import pytest
import torch
import transformers as hf
from language_zoo import HEADS, IDS, MODELS, PLAIN, SIZES, build, own_jacobians, windows
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from entk_helpers.language import kernel
from entk_helpers.language.kernel import LogitKernel
from entk_helpers.spectrum import top_eigenpairs

N, D = 3, 12
GATED = ["mlp.down_proj", "mlp.up_proj"] + [f"self_attn.{x}_proj" for x in "qkvo"]
MAPS = dict.fromkeys(MODELS, GATED) | {
    "gpt 2": ["mlp.c_proj", "mlp.c_fc", "attn.c_attn", "attn.c_proj"],
    "gpt neox": ["mlp.dense_4h_to_h", "mlp.dense_h_to_4h", "attention.query_key_value"],
    "falcon": ["mlp.dense_4h_to_h", "mlp.dense_h_to_4h", "self_attention.query_key_value"],
    "opt": ["fc2", "fc1", "self_attn.v_proj"],
}
LAYERS = {
    "gpt 2": "transformer.h",
    "gpt neox": "gpt_neox.layers",
    "falcon": "transformer.h",
    "opt": "model.decoder.layers",
}


def weight_name(name, layer, module):
    return f"{LAYERS.get(name, 'model.layers')}.{layer}.{module}.weight"


def made(model, batch, **options):
    options = dict(layer=1, module=MAPS["llama"][0]) | options
    return LogitKernel(model, batch[0], attention_mask=batch[1], **options)


def dense(K):
    return K @ torch.eye(K.shape[0], dtype=K.dtype)


def root(model, factor=1.0):
    """S^(1/2) by a Cholesky-free second route: the polar factor of U."""
    U = factor * model.get_output_embeddings().weight.detach()
    _, s, Vh = torch.linalg.svd(U, full_matrices=False)
    return Vh.T * s @ Vh


def rooted(model, J, n=N):
    """S^(1/2) J with the rows of n windows."""
    return (root(model) @ J.unflatten(0, (n, -1))).flatten(0, 1)


def close(got, expected, tolerance=1e-12):
    assert_close(got, expected, rtol=0, atol=tolerance * expected.abs().max().item())


# Every layer, map and side for Gemma 3; of the others every layer and map, sides in turn.
CASES = [
    (name, side, layer, module)
    for name in MODELS
    for i, module in enumerate(MAPS[name])
    for layer in range(3)
    for side in (
        ("right", "left")
        if (name, layer) == ("gemma 3", 2)
        else (("right", "left")[(i + layer) % 2],)
    )
    if "llama" not in name or layer == 0
]


@pytest.mark.parametrize(("name", "side", "layer", "module"), CASES)
def test_it_is_the_jacobians_product_with_itself(name, side, layer, module, exact):
    model, batch = build(name), windows(side=side)
    K = made(model, batch, layer=layer, module=module)
    J, _ = own_jacobians(model, weight_name(name, layer, module), batch, logits=False)
    J = rooted(model, J)
    assert K.shape == (N * D, N * D) and K.n_parameters == J.shape[1]
    close(dense(K), J @ J.T)


@pytest.mark.parametrize("name", ["gemma 3", "gpt 2"])
@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("memory", ["1GiB", None])
def test_products_with_the_jacobian_have_the_layout_of_the_weight(name, layer, memory, exact):
    model, batch, module = build(name), windows(), MAPS[name][0]
    K = made(model, batch, layer=layer, module=module, memory=memory or least(name, layer))
    assert K.kept == (memory is not None)
    name = weight_name(name, layer, module)
    assert K.weight_shape == tuple(model.get_parameter(name).shape)
    J, _ = own_jacobians(model, name, batch, logits=False)
    J = rooted(model, J)
    u, v = torch.randn(N * D, 2).double(), torch.randn(K.n_parameters, 2).double()
    close(K.vjp(u), J.T @ u)
    close(K.jvp(v), J @ v)
    close(K.vjp(u[:, 0]), J.T @ u[:, 0])
    close(K.jvp(v[:, 0]), J @ v[:, 0])
    close(K @ u, J @ (J.T @ u))
    assert K.matvecs == 2


@pytest.mark.parametrize("name", ["gemma 3", "gpt 2", "falcon", "opt"])
@pytest.mark.parametrize("layer", [0, 2])
def test_written_out_it_gives_the_same_products(name, layer, exact):
    model, batch, module = build(name), windows(), MAPS[name][0]
    K = made(model, batch, layer=layer, module=module, written_out=True)
    J, _ = own_jacobians(model, weight_name(name, layer, module), batch, logits=False)
    J = rooted(model, J)
    u, v = torch.randn(N * D, 3).double(), torch.randn(K.n_parameters, 3).double()
    close(K.vjp(u), J.T @ u)
    close(K.jvp(v), J @ v)
    close(K @ u[:, 0], J @ (J.T @ u[:, 0]))
    assert K.kept and K.matvecs == 1


def test_written_out_it_says_what_it_needs():
    model, batch = build("gemma 3").float(), windows()
    with pytest.raises(
        ValueError, match=r"written out, 3 windows take .* written_out=False"
    ) as error:
        made(model, batch, module=MAPS["gemma 3"][0], layer=0, written_out=True, memory=1000)
    least = int(re.search(r"pass ([\d,]+) or more", str(error.value))[1].replace(",", ""))
    K = made(model, batch, module=MAPS["gemma 3"][0], layer=0, written_out=True, memory=least)
    assert K.kept


MODES = {
    "inference": torch.inference_mode,
    "no grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("options", [{}, {"written_out": True}, {"memory": 60_000}], ids=str)
def test_products_are_the_same_in_every_mode(mode, options):
    model, batch = build("gemma 3").float(), windows()
    u, v = torch.randn(N * D, 2), torch.randn(240)
    plain = made(model, batch)
    wanted = plain @ u, plain.vjp(u), plain.jvp(v)
    with mode():
        K = made(model, batch, **options)
        found = K @ u, K.vjp(u), K.jvp(v)
    for got, expected in zip((*found, K @ u), (*wanted, wanted[0]), strict=True):
        close(got, expected, 1e-5)


def test_of_what_was_made_in_inference_mode_windows_will_do_and_models_need_a_copy():
    wanted = made(build("gemma 3").float(), windows()) @ torch.eye(N * D)
    with torch.inference_mode():
        model, batch = build("gemma 3").float(), windows()
    assert batch[0].is_inference()
    with pytest.raises(ValueError, match=r"made in torch.inference_mode, .* copy.deepcopy"):
        made(model, batch)
    close(made(copy.deepcopy(model), batch) @ torch.eye(N * D), wanted, 1e-5)


@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.jacrev])
def test_a_transform_of_a_product_is_refused(transform):
    K = made(build("gemma 3").float(), windows())
    with pytest.raises(ValueError, match=r"inside a transform of torch.func"):
        transform(lambda v: K @ v)(torch.eye(N * D))


def test_wrapped_and_checkpointing_models_have_the_kernel_of_the_model():
    model, batch = build("gemma 3").float(), windows()
    wanted = made(model, batch) @ torch.eye(N * D)
    for other in (torch.nn.DataParallel(model), torch.compile(model, backend="eager")):
        close(made(other, batch) @ torch.eye(N * D), wanted, 1e-5)
    for layer in model.model.layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = checkpoint
    close(made(model.train(), batch) @ torch.eye(N * D), wanted, 1e-5)


@pytest.mark.parametrize("name", ["gemma 3", "llama, tied", "gpt neox"])
def test_its_nonzero_spectrum_is_that_of_the_kernel_of_all_logits(name, exact):
    model, batch, module = build(name), windows(), MAPS[name][0]
    values = torch.linalg.eigvalsh(dense(made(model, batch, layer=0, module=module)))
    _, J = own_jacobians(model, weight_name(name, 0, module), batch)
    assert len(J) == N * 37
    expected = torch.linalg.eigvalsh(J @ J.T)
    close(values, expected[-N * D :])
    assert expected[: -N * D].abs().max() < 1e-12 * expected.max()


def test_a_cap_on_the_logits_is_left_out(exact):
    """The slopes of the cap undone, the capped logits have the spectrum of K~."""
    model, batch = build("gemma 2"), windows()
    values = torch.linalg.eigvalsh(dense(made(model, batch)))
    _, J = own_jacobians(model, weight_name("gemma 2", 1, "mlp.down_proj"), batch)
    capped = model(batch[0], attention_mask=batch[1]).logits.detach()[range(N), [6, 2, 4]]
    slope = 1 - (capped / 1.5).square()
    assert slope.min() < 0.9
    J = J / slope.flatten()[:, None]
    close(values, torch.linalg.eigvalsh(J @ J.T)[-N * D :], 1e-8)


def test_the_last_layer_has_a_closed_form(exact):
    """K_nm = S^(1/2) D_n D_m^T S^(1/2) (a_n . a_m), D the derivative of Llama's last norm."""
    model, (ids, mask, _) = build("llama"), windows()
    last, seen = [6, 2, 4], {}
    linear, norm = model.model.layers[-1].mlp.down_proj, model.model.norm
    hooks = [
        linear.register_forward_hook(lambda m, x, y: seen.update(a=x[0][range(N), last])),
        norm.register_forward_hook(lambda m, x, y: seen.update(x=x[0][range(N), last])),
    ]
    with torch.no_grad():
        model(ids, attention_mask=mask)
    for hook in hooks:
        hook.remove()
    K = dense(LogitKernel(model, ids, attention_mask=mask, layer=-1))
    x, g, eye = seen["x"], norm.weight.detach(), torch.eye(D, dtype=torch.float64)
    size = (x.square().mean(1) + model.config.rms_norm_eps).sqrt()[:, None, None]
    D_n = g[:, None] * (eye / size - x[:, :, None] * x[:, None, :] / (D * size**3))
    B = root(model) @ D_n
    expected = torch.einsum("nij,mkj,nf,mf->nimk", B, B, seen["a"], seen["a"])
    close(K, expected.reshape(N * D, N * D))


@pytest.mark.parametrize("name", ["cohere", "granite", "opt", "bloom", "mpt", "mamba"])
def test_other_builds_are_right_too(name, exact):
    """Scaled logits, a projection after the layers, biases by distance, no attention at all."""
    model = other(name)
    for batch in (windows(), windows((1, 1)), windows((5,))):
        K = made(model, batch, module=OTHERS[name][1])
        found = next(n for n, m in model.named_modules() if n.endswith(f".1.{OTHERS[name][1]}"))
        _, J = own_jacobians(model, f"{found}.weight", (*batch[:2], None))
        values, expected = torch.linalg.eigvalsh(dense(K)), torch.linalg.eigvalsh(J @ J.T)
        most = min(len(values), len(expected))
        close(values[-most:], expected[-most:], 1e-9)


OTHERS = {
    "cohere": (
        lambda: hf.CohereForCausalLM(hf.CohereConfig(
            **SIZES, **PLAIN, **IDS, num_key_value_heads=3, logit_scale=0.25)),
        "mlp.down_proj"),
    "granite": (
        lambda: hf.GraniteForCausalLM(hf.GraniteConfig(
            **SIZES, **PLAIN, **IDS, num_key_value_heads=3, logits_scaling=5.0)),
        "mlp.up_proj"),
    "opt": (
        lambda: hf.OPTForCausalLM(hf.OPTConfig(
            vocab_size=37, hidden_size=12, num_hidden_layers=3, ffn_dim=20, num_attention_heads=3,
            max_position_embeddings=32, word_embed_proj_dim=8, do_layer_norm_before=False, **IDS)),
        "self_attn.out_proj"),
    "bloom": (
        lambda: hf.BloomForCausalLM(hf.BloomConfig(
            vocab_size=37, hidden_size=12, n_layer=3, n_head=3, **IDS)),
        "mlp.dense_h_to_4h"),
    "mpt": (
        lambda: hf.MptForCausalLM(hf.MptConfig(
            vocab_size=37, d_model=12, n_layers=3, n_heads=3, max_seq_len=32)),
        "ffn.down_proj"),
    "mamba": (
        lambda: hf.MambaForCausalLM(hf.MambaConfig(
            vocab_size=37, hidden_size=12, num_hidden_layers=3, state_size=4, **IDS)),
        "mixer.in_proj"),
}  # fmt: skip


def other(name):
    MODELS_AND_OTHERS = {name: OTHERS[name][0]}
    return build(name, models=MODELS_AND_OTHERS)


def test_a_model_whose_last_layer_cannot_be_run_at_one_place_is_run_whole(monkeypatch, exact):
    model, batch = build("gemma 3"), windows()
    for layer in (0, 2):
        short = made(model, batch, layer=layer)
        assert all(len(p.A[0]) == (1 if layer == 2 else 7) for p in short._parts)
        with monkeypatch.context() as patch:
            patch.setattr(kernel, "_attention", lambda layer: None)
            whole = made(model, batch, layer=layer)
            close(dense(whole), dense(short))
            assert all(len(p.A[0]) == 7 for p in whole._parts)


def test_windows_do_not_see_each_other(exact):
    """Their order, their number and the side and length of the padding leave a window's block."""
    model = build("gemma 3")
    ids, mask, _ = batch = windows((7, 1, 5, 2))
    K = dense(made(model, batch)).unflatten(0, (4, D)).unflatten(2, (4, D))
    order = [2, 0, 3, 1]
    turned = dense(made(model, (ids[order], mask[order])))
    close(turned.unflatten(0, (4, D)).unflatten(2, (4, D)), K[order][:, :, order])
    for i, length in enumerate((7, 1, 5, 2)):
        alone = LogitKernel(model, ids[i : i + 1, :length], layer=1)
        close(dense(alone), K[i, :, i])


# Memory.


def least(name, layer=1, module=None, batch=None):
    """The bytes that a refusal asks for."""
    with pytest.raises(ValueError, match="too small") as refused:
        made(build(name), batch or windows(), layer=layer, module=module or MAPS[name][0], memory=1)
    return int(re.search(r"pass ([\d,]+) or more", str(refused.value))[1].replace(",", ""))


@pytest.mark.parametrize(("name", "layer"), [("gemma 3", 0), ("gemma 3", 2), ("gpt neox", 1)])
def test_what_is_kept_and_what_is_made_anew_agree(name, layer, exact):
    model, batch, module = build(name), windows((7, 3, 5)), MAPS[name][0]
    kept = made(model, batch, layer=layer, module=module)
    needed = least(name, layer, module, batch)
    anew = made(model, batch, layer=layer, module=module, memory=needed)
    assert kept.kept and not anew.kept and len(anew._parts) > 1
    v = torch.randn(N * D, 3).double()
    close(anew @ v, kept @ v)
    with pytest.raises(ValueError, match=f"memory={needed - 1:,} bytes is too small: .* 3 windows"):
        made(model, batch, layer=layer, module=module, memory=needed - 1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in other units")
def test_what_autograd_keeps_is_within_the_budget():
    """Counted anew over all records that are alive, whatever tensors share a storage."""
    model, batch = build("llama"), windows((24,) * 40)
    budget, held = 60 * 2**20, {}
    fixed = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def count(t):
        s = t.untyped_storage()
        if s.data_ptr() not in fixed:
            held[s.data_ptr()] = (s, s.nbytes())
        return t

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        K = made(model, batch, layer=0, memory=budget)
    assert K.kept
    total = sum(size for _, size in held.values())
    assert 2**20 < total < budget
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 3 * budget / 1024


# What may go wrong.


def settings(model):
    return (
        {n: (p.clone(), p.requires_grad, p.grad) for n, p in model.named_parameters()},
        {n: (m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()},
        model.config.to_dict(),
        model.config._attn_implementation,
    )  # fmt: skip


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_is_left_as_it_was_also_after_an_error(attention, monkeypatch):
    model, batch = build("gemma 3"), windows()
    model.set_attn_implementation(attention)
    model.model.layers[0].requires_grad_(False)
    model.model.embed_tokens.requires_grad_(False)
    before = settings(model)
    rng = torch.get_rng_state()

    def same():
        for (p, *rest), (q, *others) in zip(
            before[0].values(), settings(model)[0].values(), strict=True
        ):
            assert torch.equal(p, q) and rest == others
        assert before[1:] == settings(model)[1:]
        assert torch.equal(rng, torch.get_rng_state())

    for layer in range(3):
        K = made(model, batch, layer=layer)
        K @ torch.ones(K.shape[0])
        same()
        K = made(model, batch, layer=layer, memory=least("gemma 3", layer))
        K @ torch.ones(K.shape[0])
        same()
    with pytest.raises(ValueError, match="memory"):
        made(model, batch, memory=1)
    same()
    for name, index in (("mlp", 2), ("self_attn", 2), ("mlp", 1)):
        part = getattr(model.model.layers[index], name)
        K = made(model, batch, layer=0, memory=least("gemma 3", 0))
        with monkeypatch.context() as patch:
            patch.setattr(part, "forward", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                made(model, batch, layer=1)
            with pytest.raises(ZeroDivisionError):
                K @ torch.ones(K.shape[0])
        same()


def test_two_kernels_of_one_model_take_turns(exact):
    model, batch = build("gemma 3"), windows()
    one, two = made(model, batch, layer=0), made(model, batch, layer=2, memory=least("gemma 3", 2))
    a, b = dense(one), dense(two)
    for j in range(0, N * D, 7):
        e = torch.eye(N * D, dtype=torch.float64)[j]
        close(one @ e, a[:, j])
        close(two @ e, b[:, j])


@pytest.mark.parametrize("memory", ["1GiB", None])
def test_products_after_the_weights_have_changed_are_refused(memory):
    model, batch = build("llama"), windows()
    K = made(model, batch, memory=memory or least("llama"))
    v = torch.ones(K.shape[0])
    before = K @ v
    state = {n: p.clone() for n, p in model.state_dict().items()}
    model(batch[0]).logits.sum().backward()
    assert torch.equal(K @ v, before)  # gradients change nothing
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    for product in (lambda: K @ v, lambda: K.vjp(v), lambda: K.jvp(torch.ones(K.n_parameters))):
        with pytest.raises(
            ValueError, match=r"weights have changed since .* make a new LogitKernel"
        ):
            product()
    model.load_state_dict(state)
    with pytest.raises(ValueError, match="weights have changed"):
        K @ v


def test_a_weight_in_the_place_of_a_freed_one_is_a_change():
    """The allocator gives the room of an old weight to the next of its size."""
    model, batch = build("llama").float(), windows()
    linear = model.model.layers[1].mlp.down_proj
    linear.weight = torch.nn.Parameter(torch.randn(linear.weight.shape))
    place = linear.weight.data_ptr()
    K = made(model, batch, layer=2)
    linear.weight = None
    gc.collect()
    others = [torch.randn(D, 20) for _ in range(99)]
    found = [other for other in others if other.data_ptr() == place]
    linear.weight = torch.nn.Parameter((found or others)[0])
    with pytest.raises(ValueError, match="weights have changed"):
        K @ torch.ones(K.shape[0])


@pytest.mark.parametrize("memory", ["1GiB", None])
def test_nothing_outlives_a_kernel(memory):
    model, batch = build("llama"), windows()
    K = made(model, batch, layer=0, memory=memory or least("llama", 0))
    gone = [weakref.ref(p) for p in model.parameters()]
    K @ torch.ones(K.shape[0])
    del K, model
    gc.collect()
    assert not any(ref() is not None for ref in gone)


def test_a_kernel_says_of_what_it_is():
    model = build("gpt 2")
    K = made(model, windows(), layer=-2, module="attn.c_proj")
    assert K.model is model and (K.layer, K.module, K.n_windows) == (1, "attn.c_proj", 3)


@pytest.mark.parametrize(("name", "factor"), [("gemma 2", 1), ("cohere", 0.25), ("granite", 0.2)])
def test_the_factor_on_the_logits_is_public_and_in_the_metric(name, factor, exact):
    model = build(name) if name in MODELS else other(name)
    K = made(model, windows())
    assert K.scale == pytest.approx(factor, rel=1e-12)
    close(K.metric_root, root(model, factor))


def test_gradient_checkpointing_does_no_harm(exact):
    model, batch = build("llama"), windows()
    expected = dense(made(model, batch))
    model.activation_checkpointing_enable()
    close(dense(made(model, batch)), expected)
    model.train()
    close(dense(made(model, batch)), expected)


def test_float32_is_followed():
    model, batch = build("gemma 3").float(), windows()
    K = made(model, batch)
    assert K.dtype == torch.float32 and (K @ torch.ones(N * D).double()).dtype == torch.float32
    close(dense(K).double(), dense(made(build("gemma 3"), batch)), 1e-4)


def test_its_eigenpairs_are_those_of_the_dense_kernel(exact):
    K = made(build("gemma 3"), windows(), layer=0)
    pairs = top_eigenpairs(K, 5, tol=1e-9)
    close(pairs.values, torch.linalg.eigvalsh(dense(K)).flip(0)[:5], 1e-8)


def with_nan(model):
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    return model


def tied(model):
    layers = model.model.layers
    layers[2].mlp.down_proj.weight = layers[1].mlp.down_proj.weight
    return model


def dropping(**options):
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, **HEADS, **IDS, **options)).train()


def skipping(model):
    """Half of the embedding joins after the first layer: no list of layers tells that."""
    inner, start = model.model, {}
    inner.embed_tokens.register_forward_hook(lambda m, x, y: start.update(x=y))
    inner.layers[1].register_forward_hook(lambda m, x, y: y)
    inner.norm.register_forward_pre_hook(lambda m, x: (x[0] + start["x"],))
    return model


def squashing(model):
    head = model.lm_head
    head.register_forward_hook(lambda m, x, y: y)
    forward = model.forward

    def squashed(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits.sin()
        return out

    model.forward = squashed
    return model


def bidirectional():
    return build("both ways", models={"both ways": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(
        **SIZES, **HEADS, **IDS, sliding_window=4, query_pre_attn_scalar=6,
        use_bidirectional_attention=True, layer_types=["full_attention"] * 3))})  # fmt: skip


def encoder():
    return hf.BertForMaskedLM(hf.BertConfig(**SIZES, **PLAIN, **IDS)).eval()


def hooked(model):
    model.model.layers[1].mlp.down_proj.register_forward_hook(lambda m, x, y: 2 * y)
    return model


GAP = torch.tensor([[1, 0, 1, 1, 1, 1, 1]] + [[1] * 7] * 2)
EMPTY = torch.tensor([[1] * 7, [0] * 7, [1] * 7])
BAD = {
    "no such layer": (lambda: build("llama"), dict(layer=3), "layer=3 does not exist; .* 0 to 2"),
    "no such module": (
        lambda: build("llama"), dict(module="mlp.nope"),
        "module='mlp.nope' is no linear map of layer 1; there are .*mlp.down_proj"),
    "a norm": (lambda: build("llama"), dict(module="input_layernorm"), "is no linear map"),
    "tied": (lambda: tied(build("llama")), {}, "layer 1 shares its weight with another module"),
    "half precision": (
        lambda: build("llama").bfloat16(), {}, r"bfloat16, too coarse .* model.float\(\)"),
    "NaN": (lambda: with_nan(build("llama")), {}, "the model's logits holds .* NaN"),
    "dropout modules": (
        lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=37, n_embd=12, n_layer=2, n_head=3)).train(),
        dict(module="mlp.c_proj"), r"dropout; call model.eval\(\)"),
    "dropout of attention": (lambda: dropping(attention_dropout=0.1), {}, r"call model.eval\(\)"),
    "skip connection": (lambda: skipping(build("llama")), {}, "another final state .*does more than"),
    "other logits": (lambda: squashing(build("llama")), {}, "more to its logits than a linear map"),
    "both ways": (bidirectional, {}, "sees tokens that come later"),
    "encoder": (encoder, {}, "linear map"),
    "no unembedding": (lambda: build("llama").model, {}, "AutoModelForCausalLM"),
    "a hook on the map": (lambda: hooked(build("llama")), {}, "is not its weight times its input"),
    "float ids": (lambda: build("llama"), dict(ids=torch.ones(3, 7)), "torch.float32 of shape"),
    "flat ids": (lambda: build("llama"), dict(ids=torch.ones(7).long()), r"\(N, T\).* \(7,\)"),
    "no windows": (lambda: build("llama"), dict(ids=torch.ones(0, 7).long()), r"\(0, 7\)"),
    "other mask": (lambda: build("llama"), dict(mask=torch.ones(3, 6).long()), r"\(3, 6\), and input_ids \(3, 7\)"),
    "gap": (lambda: build("llama"), dict(mask=GAP), "padding between real tokens"),
    "empty window": (lambda: build("llama"), dict(mask=EMPTY), r"no token in windows \[1\]"),
    "memory": (lambda: build("llama"), dict(memory="much"), "memory must be bytes or text"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_it_cannot_do_is_refused_by_name(name):
    make, options, message = BAD[name]
    ids, mask, _ = windows((7, 7, 7))
    options = dict(layer=1, ids=ids, mask=mask) | options
    ids, mask = options.pop("ids"), options.pop("mask")
    mask = mask if mask.shape[0] == len(ids) and ids.dim() == 2 else None
    unchecked = inspect.unwrap(LogitKernel.__init__)
    with pytest.raises(ValueError, match=message):
        unchecked(LogitKernel.__new__(LogitKernel), make(), ids, attention_mask=mask, **options)


@pytest.mark.parametrize(
    ("multiply", "message"),
    [
        (lambda K: K @ torch.ones(37), r"v must have shape \(36,\) or \(36, k\), got \(37,\)"),
        (lambda K: K @ torch.ones(36, 0), r"got \(36, 0\)"),
        (lambda K: K.vjp(torch.ones(3, 12)), r"u must have shape \(36,\)"),
        (lambda K: K.jvp(torch.ones(36)), r"v must have shape \(240,\)"),
        (lambda K: K @ torch.full((36,), torch.nan), "v holds 36 NaN"),
    ],
)
def test_vectors_that_do_not_fit_are_refused_and_not_counted(multiply, message):
    K = made(build("llama"), windows())
    with pytest.raises(ValueError, match=message):
        multiply(K)
    assert K.matvecs == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_the_products_of_the_cpu():
    model, batch = build("gemma 3"), windows()
    here = dense(made(model, batch, layer=0))
    K = made(model.cuda(), batch, layer=0)
    there = K @ torch.eye(N * D, dtype=torch.float64).cuda()
    assert there.is_cuda
    close(there.cpu(), here, 1e-6)


def test_windows_in_several_parts_are_each_in_their_place():
    model = build("llama")
    ids = torch.randint(3, 20, (70, 3), generator=torch.Generator().manual_seed(0))
    some = [0, 1, 63, 64, 69]  # a part holds 64
    whole, few = (LogitKernel(model, i, layer=1) for i in (ids, ids[some]))
    assert len(whole._parts) == 2
    v = torch.zeros(70, few.shape[0] // len(some), dtype=whole.dtype)
    v[some] = torch.randn(v[some].shape, generator=torch.Generator().manual_seed(1)).to(v)
    image = (whole @ v.flatten()).unflatten(0, v.shape)[some]
    close(image.flatten(), few @ v[some].flatten(), 1e-10)
