"""A tiny model of every causal family of transformers, shrunk by rules and, where these do not do, by name."""

import re

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 211
FAMILIES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

# Fields of a configuration by name: the first rule that matches decides. All are whole numbers.
_RULES = [
    (r"(decoder_|unpadded_)?vocab_size|vocab_size_per_layer_input", VOCABULARY),
    (r"topk_group", 1),
    (r"n_group|num_expert_group|(mamba_)?n_?groups", 2),
    # Fewer keys than a row has would be drawn by lot among equal scores.
    (r"index_topk", 64),
    (r"hidden_size_per_layer_input", 8),
    (r"num_(hidden_|decoder_|encoder_)?layers|n_layers?|decoder_layers|encoder_layers|num_blocks", 4),
    (r"(index_)?(num_|n_)?(key_value_heads|kv_heads)|num_query_groups|swa_num_key_value_heads", 2),
    (r"(num_|n_|index_n_|linear_num_|swa_num_)(decoder_|encoder_)?(attention_|key_|value_)?heads?", 4),
    (r"(decoder_|encoder_)?attention_heads|linear_num_heads|n_mamba_heads|mamba_n(um)?_heads", 4),
    (r"(attention_|linear_|swa_|linear_key_|linear_value_|index_|v_|global_)?head_(dim|size)", 8),
    (r"d_head|dim_head|kv_channels", 8),
    (r"qk_nope_head_dim|qk_rope_head_dim|v_head_dim", 8),
    (r"qk_head_dim", 16),
    (r"(q|kv|o)_lora_rank", 16),
    (r"hidden_size_per_layer_input|laurel_rank|hc_lowrank|gated_norm_rank", 8),
    (r"hidden_size|d_model|n_embd|embedding_dim|emb_dim|lru_width|word_embed_proj_dim|input_embedding_size", 32),
    (r"embedding_size|output_embedding_size|router_hidden_size|attention_hidden_size", 32),
    (r".*(intermediate_size(_mlp)?|ffn_dim|ffn_hidden_size|dim_ff|dff|d_inner|feed_forward_size)", 48),
    (r"(num_|n_|moe_num_)(local_|routed_)?experts", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|num_selected_experts", 2),
    (r"(mamba_|ssm_)?(d_)?state(_size)?", 8),
    (r"(mamba_)?(dt_rank|time_step_rank)", 4),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|model_max_length|max_(target|source)_positions", 128),
    (r"(attention_)?(sliding_)?window(_size)?|attention_chunk_size|local_attention|floor_scale", 8),
    (r"rotary_dim", 4),
    (r"pronunciation_vocab_size|shape_vocab_size|pronunciation_embed_dim|shape_embed_dim", 16),
]
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}

# What the rules do not reach, by family; "text_config.x" and the like go into a part.
_MIXED = ["sliding_attention", "full_attention"] * 2
_QWEN4 = {
    **{"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 64},
    **{"indexer_compress_ratio": 4, "ple_embed_dim": 16, "ngram_vocab_size_base": 97, "split_ngram_parts": 2},
    "make_ngram_vocab_size_divisible_by": 8,
}
_OVERRIDES: dict[str, dict] = {
    "cohere_compass_text": {
        "layer_types": _MIXED,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in _MIXED[:2]},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_group": 2, "topk_group": 1},
    "dots1": {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "gemma3n_text": {
        "layer_types": _MIXED,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
        "intermediate_size": [48] * 4,
        "num_key_value_heads": 2,
    },
    "gemma4_text": {"layer_types": _MIXED, "head_dim": 8, "global_head_dim": 16},
    "gemma4_unified_text": {"layer_types": _MIXED, "head_dim": 8, "global_head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "mamba2": {"head_dim": 16},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 4},
    "qwen4_exp": {f"text_config.{name}": value for name, value in _QWEN4.items()},
    "qwen4_exp_text": _QWEN4,
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 12, "attention_hidden_size": 64, "attention_head_dim": 16},
    "zamba2": {
        **{"layers_block_type": ["linear_attention", "hybrid"] * 2, "mamba_headdim": 16, "n_mamba_heads": 4},
        **{"attention_head_dim": 16, "num_mem_blocks": 1, "attention_hidden_size": 64},
    },
}
# Families that cannot be made tiny, or are no language models over text alone, with the reason.
LEFT_OUT: dict[str, str] = {
    "blt": "reads bytes in patches that a second model cuts, and its parts' sizes hang on one another",
    "dbrx": "its configuration has no base for its rotation in this release, so that no model can be made of it",
    "dots3_note": "its layers are sized one by one, for the full number of them",
    "dots3_note_text": "its layers are sized one by one: 76 million weights with 4 layers",
    "emu3": "its language model is saved as a type of its own, which AutoModelForCausalLM does not load",
    "mllama": "its language model is saved as a type of its own, which AutoModelForCausalLM does not load",
    "prophetnet": "an encoder-decoder, which is refused; its decoder by itself computes a row otherwise beside others",
    "gemma3n": "its vision tower needs the package timm; gemma3n_text is its language model",
    "gemma4_assistant": "drafts for another model, whose states it is given",
    "gemma4_unified_assistant": "drafts for another model, whose states it is given",
    "musicgen": "predicts codebooks of sound, not text",
    "musicgen_melody": "predicts codebooks of sound, not text",
    "reformer": "has gradients only for rows of exactly as many tokens as its table of positions",
}
# Families whose own forward fails in bfloat16, because it multiplies float32 and bfloat16.
ONLY_FLOAT32 = {"inkling2_text", "xlstm"}
# Families whose predictions see what stands behind: they are refused.
NOT_CAUSAL = {"cpmant", "xlnet"}


def tiny_config(family: str):
    """The configuration of a tiny model of ``family``."""
    return _shrunk(CONFIG_MAPPING[family], _OVERRIDES.get(family, {}))


def _shrunk(config_class, overrides):
    try:
        default = config_class()
    except Exception:  # its defaults contradict one another; the overrides say what to start from
        default = config_class(**{name: value for name, value in overrides.items() if "." not in name})
    settings: dict = {}
    known = {**default.to_dict()}
    for name, value in known.items():
        part = vars(default).get(name)
        if hasattr(part, "to_dict"):
            inner = {key.split(".", 1)[1]: value for key, value in overrides.items() if key.startswith(f"{name}.")}
            settings[name] = _shrunk(type(part), inner)
        elif name in _TOKENS and value is not None:
            settings[name] = _TOKENS[name]
        elif isinstance(value, int) and not isinstance(value, bool):
            rule = next((size for pattern, size in _RULES if re.fullmatch(pattern, name)), None)
            if rule is not None and value > 1:
                settings[name] = min(rule, value)
        elif isinstance(value, float) and ("drop" in name or "jitter" in name):
            settings[name] = 0.0
    if settings.get("num_key_value_heads") and known["num_key_value_heads"] == known.get("num_attention_heads"):
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    # An optional size that is left out comes from the full-sized defaults, or is missing.
    if "head_dim" in known and "hidden_size" in known and known["head_dim"] is None:
        settings["head_dim"] = 8
    settings |= {name: value for name, value in overrides.items() if "." not in name}
    return config_class(**settings)


def tiny_family(family: str, seed: int = 0, dtype: torch.dtype = torch.float32):
    """A randomly initialised model of ``family`` whose logits are spread enough for a wrong position to matter."""
    torch.manual_seed(seed)
    config = tiny_config(family)
    for part in (config, config.get_text_config()):
        if hasattr(part, "is_decoder"):
            part.is_decoder = True
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_((torch.randn(parameter.shape, generator=generator) * 0.05).to(parameter.dtype))
    return model
