"""Chat templates of the kinds that models have, in our own words, and a tokenizer of bytes that knows their tokens."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "</s>", "<s>", "<|open|>", "<|shut|>", "<|eot|>", "<turn>", "<end_turn>", "[ASK]", "[/ASK]"]
TEMPLATES = {
    # Every turn between two marks, and a line break after it.
    "marked": (
        "{% for m in messages %}<|open|>{{ m['role'] }}\n{{ m['content'] }}<|shut|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|open|>assistant\n{% endif %}"
    ),
    # BOS inside, a date, a system turn of its own, and contents without white space around them.
    "dated": (
        "{{ bos_token }}{% if strftime_now is defined %}Today is {{ strftime_now('%d %b %Y') }}. {% endif %}"
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}<|eot|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    ),
    # No system role, the assistant is called model, roles alternate.
    "alternating": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles alternate') }}{% endif %}"
        "<turn>{{ 'model' if m['role'] == 'assistant' else 'user' }}\n"
        "{{ m['content'] }}<end_turn>\n{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
    ),
    # Questions in brackets, answers end with the end of text.
    "bracketed": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}"
        "{% elif m['role'] == 'user' %}[ASK] {{ m['content'] }} [/ASK]{% endif %}{% endfor %}"
    ),
    # A thinking model: an empty thought stands before the last answer, and where it is asked not to think.
    "thinking": (
        "{% for m in messages %}<|open|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}"
        "<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|shut|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|open|>assistant\n{% endif %}"
    ),
    # Says which words are the assistant's.
    "generating": (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}<|open|>{% generation %}{{ m['content'] }}<|shut|>"
        "{% endgeneration %}{% else %}<|open|>{{ m['role'] }}: {{ m['content'] }}<|shut|>{% endif %}{% endfor %}"
    ),
    # The system prompt always stands there.
    "preset": (
        "{% if messages[0]['role'] != 'system' %}<|open|>system\nBe kind.<|shut|>\n{% endif %}"
        "{% for m in messages %}<|open|>{{ m['role'] }}\n{{ m['content'] }}<|shut|>\n{% endfor %}"
    ),
}
# What ends a turn of the assistant.
ENDS = {
    **{"marked": "<|shut|>", "dated": "<|eot|>", "alternating": "<end_turn>", "bracketed": "</s>"},
    **{"thinking": "<|shut|>", "generating": "<|shut|>", "preset": "<|shut|>"},
}


def chat_tokenizer(template=None, with_bos=True):
    """A tokenizer of bytes that puts BOS before every text, and has a chat template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *letters])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    if with_bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.chat_template = TEMPLATES.get(template, template)
    return tokenizer
