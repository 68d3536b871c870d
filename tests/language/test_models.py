"""What is read from a model, against the model's own outputs."""

import pytest
import torch
import transformers as hf
from jaxtyping import config
from language_zoo import MODELS, build, own_outputs, windows
from torch.testing import assert_close

from entk_helpers.language.models import (
    Parts,
    Readout,
    RightPadded,
    gemma_3_270m_config,
    last_token_states,
    linear_map,
)

DOWN = {
    "gpt 2": "mlp.c_proj",
    "gpt neox": "mlp.dense_4h_to_h",
    "falcon": "mlp.dense_4h_to_h",
    "opt": "fc2",
}
NORM = {
    "gpt 2": "transformer.ln_f",
    "gpt neox": "gpt_neox.final_layer_norm",
    "falcon": "transformer.ln_f",
    "opt": "model.decoder.final_layer_norm",
}
LAST = {"right": [6, 2, 4], "left": [6, 6, 6]}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_last_token_states_are_the_models_own(name, side, exact):
    model, batch = build(name), windows(side=side)
    module = DOWN.get(name, "mlp.down_proj")
    states = last_token_states(model, *batch[:2], module=module, batch=2)
    with torch.no_grad():
        out = model(
            batch[0], attention_mask=batch[1], position_ids=batch[2], output_hidden_states=True
        )
    rows, last = range(3), LAST[side]
    close = dict(rtol=1e-10, atol=1e-10)
    assert_close(states.logits, out.logits[rows, last], **close)
    assert_close(states.final, out.hidden_states[-1][rows, last], **close)
    # The last of the model's own hidden states is after the norm, so it cannot tell layer 2's.
    for layer in (0, 1):
        own = out.hidden_states[layer + 1][rows, last]
        assert_close(states.residual[layer], own, **close)
    normed = model.get_submodule(NORM.get(name, "model.norm"))(states.residual[2])
    assert_close(normed, states.final, **close)
    one = last_token_states(model, *batch[:2], module=module)
    assert_close(one.mlp, states.mlp, **close)
    assert states.mlp.shape == (3, 3, 20) and states.residual.shape == (3, 3, 12)


def test_the_activations_are_what_the_linear_map_is_given():
    model, (ids, mask, _) = build("llama"), windows()
    seen = []
    for layer in model.model.layers:
        layer.mlp.down_proj.register_forward_hook(lambda m, x, y: seen.append(x[0]))
    model(ids, attention_mask=mask)
    own = torch.stack([a[range(3), [6, 2, 4]] for a in seen[:3]]).detach()
    assert_close(last_token_states(model, ids, mask).mlp, own, rtol=1e-5, atol=1e-5)


def test_windows_are_aligned_and_padded_with_real_tokens():
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 0, 0], [1, 2, 3, 4], [0, 9, 0, 0]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0]])
    found = RightPadded.of(ids, mask, torch.device("cpu"))
    assert found.input_ids.tolist() == [[5, 6, 5, 5], [7, 8, 7, 7], [1, 2, 3, 4], [9, 9, 9, 9]]
    assert found.last.tolist() == [1, 1, 3, 0]
    bools = RightPadded.of(ids, mask.bool(), torch.device("cpu"))
    assert torch.equal(bools.input_ids, found.input_ids)
    assert torch.equal(RightPadded.of(ids, None, torch.device("cpu")).input_ids, ids)
    # A token whose id is that of the padding is real where the mask says so.
    assert RightPadded.of(ids, None, torch.device("cpu")).last.tolist() == [3] * 4


@pytest.mark.parametrize("name", ["llama", "gemma 2", "gpt neox"])
def test_the_readout_gives_the_logits_and_the_metric_their_size(name, exact):
    model, (ids, mask, positions) = build(name), windows()
    parts = Parts.of(model)
    read = Readout.of(parts, RightPadded.of(ids, mask, model.device)[:1])
    final, logits = own_outputs(model, {}, ids, mask, positions)
    assert_close(read(final), logits, rtol=1e-10, atol=1e-10)
    root, U = read.metric_root(), parts.unembedding.weight.detach()
    assert_close(root @ root, U.T @ U, rtol=1e-12, atol=1e-12)
    assert_close(root, root.T, rtol=0, atol=1e-12)
    assert torch.linalg.eigvalsh(root).min() > 0
    assert read.cap == (1.5 if name == "gemma 2" else None) and abs(read.scale - 1) < 1e-12


def test_a_constant_factor_on_the_logits_is_found():
    config = hf.CohereConfig(
        vocab_size=37, hidden_size=12, num_hidden_layers=2, intermediate_size=20,
        num_attention_heads=3, num_key_value_heads=3, logit_scale=0.25,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = build("cohere", models={"cohere": lambda: hf.CohereForCausalLM(config)})
    read = Readout.of(Parts.of(model), RightPadded.of(*windows()[:2], model.device)[:1])
    assert read.scale == pytest.approx(0.25, rel=1e-9)
    U = model.lm_head.weight.detach()
    assert_close((read.metric_root() @ read.metric_root()), U.T @ U / 16, rtol=1e-9, atol=1e-9)


def test_layers_and_maps_are_found_by_number_and_name():
    model = build("gpt neox")
    parts = Parts.of(model)
    assert parts.layer(-1) is parts.layer(2) is model.gpt_neox.layers[2]
    assert linear_map(parts, -3, "mlp.dense_4h_to_h") is model.gpt_neox.layers[0].mlp.dense_4h_to_h
    for index in (3, -4):
        with pytest.raises(ValueError, match=f"layer={index} does not exist; .* 0 to 2"):
            parts.layer(index)


def test_train_mode_matters_only_where_something_is_dropped():
    model, (ids, mask, _) = build("llama"), windows()
    before = last_token_states(model, ids, mask).logits
    assert_close(last_token_states(model.train(), ids, mask).logits, before, rtol=0, atol=0)
    model.model.layers[1].self_attn.attention_dropout = 0.5
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        last_token_states(model, ids, mask)
    assert_close(last_token_states(model.eval(), ids, mask).logits, before, rtol=0, atol=0)
    model.model.layers[1].train()  # one layer alone
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        last_token_states(model, ids, mask)


def test_the_config_has_the_published_number_of_weights():
    """268,098,176: the number that the weights of google/gemma-3-270m add up to."""
    with torch.device("meta"):
        model = hf.Gemma3ForCausalLM(gemma_3_270m_config())
    assert sum(p.numel() for p in model.parameters()) == 268_098_176
    kinds = model.config.layer_types
    assert [i for i, kind in enumerate(kinds) if kind == "full_attention"] == [5, 11, 17]


def test_what_a_tokenizer_returns_is_refused_by_name_and_so_is_a_layers_name(request):
    config.update("jaxtyping_disable", True)  # as for a user, who has no import hook
    request.addfinalizer(lambda: config.update("jaxtyping_disable", False))
    batch = hf.BatchEncoding({"input_ids": torch.ones(2, 3, dtype=torch.int64)})
    with pytest.raises(TypeError, match="input_ids must be a torch tensor, not BatchEncoding"):
        RightPadded.of(batch, None, torch.device("cpu"))
    with pytest.raises(TypeError, match=r"layer must be a whole number, not 'model\.layers\.1'"):
        Parts.of(build("llama")).layer("model.layers.1")


@pytest.mark.parametrize(
    "mode", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_states_are_the_same_in_every_mode(mode):
    model, (ids, mask, _) = build("opt").float(), windows()
    wanted = last_token_states(model, ids, mask, module="fc2")
    with mode():
        found = last_token_states(model, ids, mask, module="fc2")
    for name in ("residual", "mlp", "final", "logits"):
        assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-5, atol=1e-5)
    wrapped = torch.nn.DataParallel(model)
    assert_close(last_token_states(wrapped, ids, mask, module="fc2").logits, wanted.logits)
