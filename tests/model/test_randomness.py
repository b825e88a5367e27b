"""Chance in training: a student is its own teacher at the start, whatever its family draws by lot."""

import random

import numpy as np
import pytest
import torch
from helpers.tiny import tiny_model, tiny_trainer
from torch import nn
from transformers import ReformerConfig, ReformerModelWithLMHead, set_seed

from unlearn_trainer.model.randomness import disable_dropout, switch_off_chance
from unlearn_trainer.teacher.teachers import frozen_copy

peft = pytest.importorskip("peft", reason="the peft package is not installed")

EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
OWN_TEACHER = {"method": "kl", "forget_coef": 0.0, "retain_coef": 1.0, "teacher": "resident"}


class Shaken(nn.Module):
    """A part that is multiplied by a number drawn in training."""

    def __init__(self, part, draw):
        super().__init__()
        self.part, self.draw = part, draw

    def forward(self, *args, **kwargs):
        return self.part(*args, **kwargs) * (1 + self.draw() if self.training else 1)


def shaken(draw):
    model = tiny_model()
    for layer in model.model.layers:
        layer.mlp = Shaken(layer.mlp, draw)
    return model


def adapted(config):
    model = peft.get_peft_model(tiny_model(), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    return model


MODELS = {
    "routers that draw experts": lambda: tiny_model("phimoe", **EXPERTS),
    "routers with noise at their input": lambda: tiny_model("phimoe", **EXPERTS, input_jitter_noise=0.3),
    "experts with noise at their input": lambda: tiny_model("mixtral", **EXPERTS, router_jitter_noise=0.3),
    "the same of another family": lambda: tiny_model("minimax", **EXPERTS, router_jitter_noise=0.3),
    "layers skipped": lambda: tiny_model("xglm", layerdrop=0.5),
    "layers skipped, elsewhere": lambda: tiny_model("opt", layerdrop=0.5),
    "an adapter's dropout": lambda: adapted(peft.LoraConfig(target_modules="all-linear", lora_dropout=0.5)),
    "another's, of a module of its own": lambda: adapted(
        peft.OFTConfig(target_modules=["q_proj"], r=0, oft_block_size=4, module_dropout=0.5)
    ),
    "numbers of Python": lambda: shaken(random.random),
    "numbers of NumPy": lambda: shaken(np.random.random),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_student_is_its_own_teacher_at_the_start(kind, tmp_path, caplog):
    model = MODELS[kind]().eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        plain = model(ids).logits
    trainer = tiny_trainer(tmp_path, model, per_device_train_batch_size=6, max_steps=2, **OWN_TEACHER)
    with torch.no_grad():  # the model itself is as it was
        assert torch.equal(model.eval()(ids).logits, plain)
    batch = next(iter(trainer.get_train_dataloader()))
    for seed in range(3):
        set_seed(seed)
        model.train()
        assert abs(trainer.compute_loss(model, batch).item()) < 1e-6
    with torch.no_grad():
        torch.testing.assert_close(frozen_copy(model).train()(ids).logits, plain)
    assert "predicts otherwise" not in caplog.text


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_is_the_same_whatever_was_drawn_before(checkpointing, tmp_path):
    trained = []
    for number in range(2):
        model = tiny_model("phimoe", **EXPERTS)
        trainer = tiny_trainer(
            tmp_path, model, max_steps=2, learning_rate=1e-2, gradient_checkpointing=checkpointing and number == 1
        )
        set_seed(number)
        trainer.train()
        trained.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*trained)


@pytest.mark.parametrize("kind", ["routers that draw experts", "numbers of Python", "numbers of NumPy"])
def test_the_trial_leaves_no_trace(kind):
    model = MODELS[kind]()
    model.model.layers[0].train()
    modes = [module.training for module in model.modules()]
    set_seed(5)
    switch_off_chance(model)
    drawn = random.random(), np.random.random(), torch.rand(())
    assert [module.training for module in model.modules()] == modes
    set_seed(5)
    assert (random.random(), np.random.random(), torch.rand(())) == drawn


def test_chance_that_stays_is_named(tmp_path, caplog):
    own = np.random.default_rng(0)
    tiny_trainer(tmp_path, shaken(own.random), method="retain_only")
    assert "predicts otherwise in training than when it is measured" in caplog.text
    caplog.clear()

    class Noisy(nn.Module):
        def forward(self, hidden):
            return hidden + torch.randn_like(hidden)

    model = tiny_model()
    model.model.layers[1].mlp = Noisy()
    tiny_trainer(tmp_path, model, method="retain_only", neftune_noise_alpha=5.0)
    assert "because of chance in model.layers.1.mlp" in caplog.text
    assert "--neftune_noise_alpha shakes the embeddings" in caplog.text


def test_without_a_forward_the_code_of_routers_tells():
    model = tiny_model("phimoe", **EXPERTS).to("meta")
    switch_off_chance(model)
    router = model.model.layers[0].mlp.router
    seen = []
    router.register_forward_pre_hook(lambda module, args: seen.append(module.training))
    model.train()
    router(torch.empty(4, 32, device="meta"))
    assert seen == [False] and router.training


def tiny_reformer(**changes):
    """Locality-sensitive attention with more buckets than one, over rows of up to 64 tokens."""
    torch.manual_seed(0)
    sizes = {
        **{"vocab_size": 211, "hidden_size": 32, "attention_head_size": 8, "num_attention_heads": 4},
        **{"attn_layers": ["lsh", "lsh"], "num_buckets": 4, "num_hashes": 1, "lsh_attn_chunk_length": 8},
        **{"axial_pos_shape": (8, 8), "axial_pos_embds_dim": (16, 16), "feed_forward_size": 48, "is_decoder": True},
        **{"hidden_dropout_prob": 0.0, "lsh_attention_probs_dropout_prob": 0.0, "max_position_embeddings": 64},
    }
    return ReformerModelWithLMHead(ReformerConfig(**{**sizes, **changes})).eval()


def five_forwards(model, training):
    """Logits of the same row, from states of chance that differ."""
    model.train(training)
    ids = torch.arange(3, 67)[None]
    with torch.no_grad():
        return [model(input_ids=ids).logits for seed in range(5) if torch.manual_seed(seed)]


@pytest.mark.parametrize("kinds", [["lsh", "lsh"], ["local", "lsh"]])
@pytest.mark.parametrize("hashes", [1, 2])
def test_drawn_hashes_are_the_same_in_every_forward(kinds, hashes):
    model = tiny_reformer(attn_layers=kinds, num_hashes=hashes)
    first, *others = five_forwards(model, False)
    assert any((each - first).abs().max() > 1e-3 for each in others), "the hashes do not matter: nothing is tested"
    disable_dropout(model)
    first, *others = [*five_forwards(model, False), *five_forwards(model, True)]
    for each in others:
        torch.testing.assert_close(each, first)
    for each in five_forwards(frozen_copy(model), False):  # the teacher draws as its student does
        torch.testing.assert_close(each, first)


def test_a_seed_of_hashes_that_was_chosen_is_kept():
    model = tiny_reformer(hash_seed=7)
    before = five_forwards(model, False)[0]
    disable_dropout(model)
    torch.testing.assert_close(five_forwards(model, True)[0], before)
    assert {module.hash_seed for module in model.modules() if hasattr(module, "hash_seed")} == {7}
    assert model.config.hash_seed == 7


def test_the_configuration_of_drawn_hashes_is_saved_as_it_was(tmp_path):
    model = tiny_reformer()
    disable_dropout(model)
    model.save_pretrained(tmp_path)
    assert ReformerConfig.from_pretrained(tmp_path).hash_seed is None
