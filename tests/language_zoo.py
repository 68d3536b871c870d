"""Small causal language models with random weights, and their Jacobians by plain autograd."""

import torch
import transformers as hf
from torch.func import functional_call

SIZES = dict(vocab_size=37, hidden_size=12, num_hidden_layers=3, max_position_embeddings=32)
HEADS = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=6, intermediate_size=20)
PLAIN = dict(num_attention_heads=3, intermediate_size=20)
GPT2 = dict(vocab_size=37, n_embd=12, n_layer=3, n_head=3, n_positions=32, n_inner=20)
IDS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)

MODELS = {
    # Windows of 7 tokens: longer than what a sliding layer sees.
    "gemma 3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(
        **SIZES, **HEADS, **IDS, sliding_window=4, query_pre_attn_scalar=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"])),
    "gemma 2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(
        **SIZES, **HEADS, **IDS, sliding_window=4, query_pre_attn_scalar=6,
        attn_logit_softcapping=2.0, final_logit_softcapping=1.5)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, **HEADS, **IDS)),
    "llama, tied": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(**SIZES, **HEADS, **IDS, tie_word_embeddings=True)),
    "qwen 2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(
        **SIZES, num_attention_heads=3, num_key_value_heads=1, intermediate_size=20, **IDS)),
    "gpt 2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2, **IDS)),
    "gpt neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SIZES, **PLAIN, **IDS)),
    # Adds to the MLP's outputs in place.
    "falcon": lambda: hf.FalconForCausalLM(hf.FalconConfig(
        vocab_size=37, hidden_size=12, num_hidden_layers=3, num_attention_heads=3,
        ffn_hidden_size=20, **IDS)),
    # Puts the tokens of all windows in one row for its MLP.
    "opt": lambda: hf.OPTForCausalLM(hf.OPTConfig(
        vocab_size=37, hidden_size=12, word_embed_proj_dim=12, num_hidden_layers=3, ffn_dim=20,
        num_attention_heads=3, max_position_embeddings=32, **IDS)),
}  # fmt: skip


def build(name, dtype=torch.float64, models=MODELS):
    """A model in eval mode; every weight is moved, so that no norm or bias is trivial."""
    torch.manual_seed(0)
    model = models[name]().to(dtype).eval()
    # Fused attention gives NaN where a place in the padding sees nothing, and that spreads.
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    return model


def windows(lengths=(7, 3, 5), side="right", seed=0):
    """Token ids, mask and positions of windows of several lengths, padded on one side."""
    generator = torch.Generator().manual_seed(seed)
    n, most = len(lengths), max(lengths)
    ids, mask = torch.zeros(n, most, dtype=torch.long), torch.zeros(n, most, dtype=torch.long)
    positions = torch.zeros(n, most, dtype=torch.long)
    for i, length in enumerate(lengths):
        where = slice(0, length) if side == "right" else slice(most - length, most)
        ids[i, where] = torch.randint(3, 37, (length,), generator=generator)
        mask[i, where], positions[i, where] = 1, torch.arange(length)
    return ids, mask, positions


def own_outputs(model, weights, ids, mask, positions):
    """The model's own last hidden states and logits at each window's last real token."""
    kwargs = dict(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
    if positions is not None:
        kwargs["position_ids"] = positions
    out = functional_call(model, weights, (), kwargs)
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    rows = torch.arange(len(ids))
    return out.hidden_states[-1][rows, last], out.logits[rows, last]


def own_jacobians(model, weight_name, batch, *, logits=True):
    """d h / dW and d logits / dW, (N*d, P) and (N*V, P), by differentiating the whole model."""
    weight = model.get_parameter(weight_name).detach()
    found = []
    for i in range(1 + logits):
        J = torch.autograd.functional.jacobian(
            lambda W, i=i: own_outputs(model, {weight_name: W}, *batch)[i], weight, vectorize=True
        )
        found.append(J.flatten(0, 1).flatten(1))
    return found if logits else (found[0], None)
