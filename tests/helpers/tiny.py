"""Tiny real models of many architectures, made from configs."""

import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 211
_LLAMA_LIKE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# What each adds to the plain case: a soft cap, a scale, a divisor, a bias, tied weights, other names for the parts.
CONFIGS = {
    "llama": {},
    "llama-tied": {"tie_word_embeddings": True},
    "qwen3": {},
    "gemma2": {"final_logit_softcapping": 30.0, "query_pre_attn_scalar": 8},
    "gemma3_text": {"final_logit_softcapping": None, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "cohere": {"logit_scale": 0.0625},
    "granite": {"logits_scaling": 8.0},
    "phi": {"num_key_value_heads": 4},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "bloom": {"n_layer": 2, "n_head": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "gpt_neox": {},
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_state": 8, "lm_head_multiplier": 0.5},
}


def tiny_model(kind: str = "llama", seed: int = 0, dtype=torch.float32, **changes):
    """A randomly initialised causal LM with logits spread enough for soft caps and KL to matter."""
    torch.manual_seed(seed)
    settings = {**_LLAMA_LIKE, **CONFIGS.get(kind, {}), **changes}
    config = AutoConfig.for_model(kind.removesuffix("-tied"), **settings)
    for name in ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    if dtype == torch.float64:
        compute_in_float64(model)
    return model


class _Float64(TorchFunctionMode):
    """Casts to float64 what is to be cast to float32."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        args = tuple(torch.float64 if value is torch.float32 else value for value in args)
        kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        if function is torch.full and isinstance(args[1], float):  # XGLM's mask
            kwargs.setdefault("dtype", torch.float64)
        return function(*args, **kwargs)


def compute_in_float64(model):
    """Makes norms, softmaxes and rotations of ``model`` compute in float64, which many cast to float32.

    Otherwise what agrees to the last digit on one processor differs by float32's rounding on another.
    """
    modes = []

    def enter(module, args):
        modes.append(_Float64())
        modes[-1].__enter__()

    model.register_forward_pre_hook(enter)
    model.register_forward_hook(lambda module, args, output: modes.pop().__exit__(None, None, None), always_call=True)


def tiny_multimodal(window: int = 8):
    """A Gemma 3 that also takes pictures: the settings of its language model stand in a part of its configuration."""
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        "gemma3",
        text_config={**_LLAMA_LIKE, "query_pre_attn_scalar": 8, "sliding_window": window},
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        **{"image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7},
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


LANGUAGES = ["en", "sw", "zh"]


def tiny_rows(items: int = 6, seed: int = 0, languages=LANGUAGES, vocabulary: int = VOCABULARY):
    """A tokenized split of random rows in every language, cloze-like: the last half of each row is labelled."""
    from datasets import Dataset

    generator = torch.Generator().manual_seed(seed)
    rows = []
    for item in range(items):
        for language in range(len(languages)):
            length = int(torch.randint(6, 14, (1,), generator=generator))
            ids = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
            labels = [-100] * (length // 2) + ids[length // 2 :]
            rows.append({"input_ids": ids, "labels": labels, "language": language, "item": item})
    return Dataset.from_list(rows)


def rows_with_companions(items=4, seed=0):
    """Rows of :func:`tiny_rows`, each with another answer after the same beginning, and with a row like it."""
    from datasets import Dataset

    rows = []
    for number, row in enumerate(tiny_rows(items, seed).to_list()):
        prompt = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
        answer = [(7 * number + 11 * place) % 200 + 3 for place in range(1 + number % 4)]
        row["alternative_input_ids"] = prompt + answer
        row["alternative_labels"] = [-100] * len(prompt) + answer
        row["counterpart_input_ids"] = [(token * 5) % 200 + 3 for token in row["input_ids"][number % 2 :]]
        row["counterpart_labels"] = [-100, *row["counterpart_input_ids"][1:]]
        rows.append(row)
    return Dataset.from_list(rows)


def tiny_config(folder, **settings):
    """An ``UnlearnConfig`` for the CPU that writes and prints nothing it was not asked to."""
    from unlearn_trainer.config.unlearn_config import UnlearnConfig

    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": [], "save_strategy": "no", "logging_steps": 1}
    return UnlearnConfig(output_dir=str(folder), **{**quiet, **settings})


def tiny_trainer(folder, model=None, splits=("forget", "retain", "valid"), forget=None, **settings):
    """An ``UnlearnTrainer`` on :func:`tiny_rows` or ``forget``; the splits differ, valid is measured too."""
    from unlearn_trainer.trainer import UnlearnTrainer

    rows = {split: tiny_rows(seed=seed) for seed, split in enumerate(splits)}
    return UnlearnTrainer(
        model if model is not None else tiny_model(),
        tiny_config(folder, **settings),
        rows["forget"] if forget is None else forget,
        rows["retain"],
        languages=LANGUAGES,
        eval_dataset=rows,
    )
