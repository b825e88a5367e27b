"""``--estimate_memory``: bytes a GPU needs for a training step under each engine, from the configuration alone.

The model is built on the ``meta`` device, where tensors have shapes and types but no values, so that parameters are
counted on the very model that would run, adapters and tied weights included. A forward there tells which tensors
autograd keeps for the backward pass. What each engine then replicates, casts and shards follows ``engines.py``,
``teacher.py`` and the files of ``ds_configs/``. Not counted: the context of the GPU's driver, buffers of the
communication library, fragmentation, and evaluation, which needs less than a step unless its batches are far larger.
"""

import dataclasses
import math

import torch
from transformers import PreTrainedModel
from transformers.training_args import OptimizerNames

from ..config.arguments import DataArguments, ModelArguments
from ..config.unlearn_config import CHECKPOINTING, UnlearnConfig
from ..data.collator import COMPANIONS
from ..errors import ConfigError
from ..head.chunked import chunk_tokens, tile_rows
from ..head.projection import VocabularyHead
from ..model.layers import restrict_training
from ..model.loading import apply_peft, load_config
from ..model.trials import base_of, made_without_values, text_config
from ..step.loss import resolve_objectives
from .activations import saved_for_backward

# From the least to the most sharded, with the file of ds_configs/ that starts each.
ENGINES = {
    "ddp": "accelerate_ddp.yaml",
    "zero1": "zero1.json",
    "zero2": "accelerate_zero2.yaml",
    "fsdp2": "accelerate_fsdp2.yaml",
    "zero3": "accelerate_zero3.yaml",
    "zero3_offload": "zero3_offload.json",
}
# Elements of DeepSpeed's reduction buffers: its default for stage 1, two overlapping buckets for stage 2.
ZERO_BUCKETS = {"zero1": 5e8, "zero2": 2 * 2e8}
# Stage 3 keeps gathered what is used again within so many parameters, and steps over so many at a time (its defaults).
ZERO3_LIVE = ZERO3_STEP = 10**9
# Bytes of optimizer state a trained parameter; whatever is not named is taken for AdamW with its two moments.
OPTIMIZER_BYTES = {
    "sgd": 0,
    "lion_8bit": 1,
    "adamw_8bit": 2,
    "adamw_bnb_8bit": 2,
    "adagrad": 4,
    "lion_32bit": 4,
    "rmsprop": 4,
}
# No formula of a config's fields covers all architectures. Where the forward cannot be traced: bytes a token, hidden
# unit and layer divided by the size of the type (Korthikanti et al. 2022: 34 in half precision, fused attention).
UNTRACED_ACTIVATIONS = 17
GPU_COUNTS = (1, 8, 64)
GPU_GIGABYTES = (24, 40, 80, 141)
SPARE = 0.1


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one GPU, from :meth:`StepMemory.estimate`.

    ``peak`` is less than the sum of the columns where some are not held at the same time: the gradients of a step
    without accumulation appear while the activations go.

    Args:
        engine: a key of :data:`ENGINES`.
        gpus: how many share what the engine shards.
        weights: of the model that is trained.
        gradients: of its trained parameters, on this GPU.
        optimizer: its states, and the float32 master weights of DeepSpeed.
        teacher: the frozen copy of the model, if there is one.
        heads: chunks of logits, the head's gradient in float32, final hidden states.
        activations: what the body of the model keeps for the backward pass, and the work of one layer.
        buffers: gathered layers, buckets of gradients under way.
        peak: the most that is held at once.
        host: bytes of main memory a GPU (offloading).
    """

    engine: str
    gpus: int
    weights: int
    gradients: int
    optimizer: int
    teacher: int
    heads: int
    activations: int
    buffers: float
    peak: float
    host: int = 0


class StepMemory:
    """What one training step holds, before an engine divides it.

    Args:
        model_args, data_args, args: as :func:`~unlearn_trainer.config.parser.parse_arguments` returns them.

    Raises:
        ConfigError: the model is the built-in one, or its configuration cannot be loaded.
    """

    def __init__(self, model_args: ModelArguments, data_args: DataArguments, args: UnlearnConfig):
        if model_args.model_name_or_path == "synthetic":
            raise ConfigError(
                "--estimate_memory: the built-in model has half a million parameters and fits anywhere; "
                "name the model you mean with --model_name_or_path"
            )
        self.args = args
        self.model = apply_peft(restrict_training(build_on_meta(model_args), model_args.trainable_layers), model_args)
        self.config = text_config(self.model)
        self.head = VocabularyHead(base_of(self.model))
        # A tied weight is one parameter.
        self.parameters = [(p.numel(), p.element_size(), p.requires_grad) for p in self.model.parameters()]
        self.trained_shapes = [p.shape for p in self.model.parameters() if p.requires_grad]
        self.trained = sum(shape.numel() for shape in self.trained_shapes)
        self.count = sum(numel for numel, _, _ in self.parameters)

        objectives = [
            objective for objective in resolve_objectives(args, self.config.model_type).values() if objective
        ]
        sides = sum(name != "none" for name in (args.forget_objective, args.retain_objective))
        groups = sides if args.schedule == "joint" else 1
        groups += sum(map(args.needs_companion, COMPANIONS))
        self.rows = args.per_device_train_batch_size * groups
        self.length = data_args.max_seq_length
        self.taught = any(objective.needs & {"kl", "teacher_logits"} for objective in objectives)
        needs_teacher = any(objective.needs_teacher for objective in objectives)
        self.has_resident_teacher = needs_teacher and not (model_args.use_peft and args.teacher in ("auto", "adapter"))
        self.is_split = any(objective.at_label and not objective.predicts_next for objective in objectives)

        self.mixed = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        self.loaded = self.head.weight.dtype
        self._traced: dict[tuple, tuple[int, int]] = {}
        self.is_traced = True

    def estimate(self, engine: str, gpus: int) -> MemoryEstimate:
        """Bytes on one of ``gpus`` GPUs under ``engine``, a key of :data:`ENGINES`."""
        is_deepspeed = engine.startswith("zero")
        shards_weights = engine in ("zero3", "zero3_offload", "fsdp2")
        size = (self.mixed or self.loaded).itemsize  # what is computed in

        def shard(value, is_sharded=True):
            return math.ceil(value / gpus) if is_sharded else int(value)

        def stored(numel, own, is_trained):
            if is_deepspeed:  # casts all; float32 masters are the optimizer's
                return numel * size
            upcast = engine == "fsdp2" and self.mixed and is_trained
            return numel * (4 if upcast else own)

        weights = sum(stored(*parameter) for parameter in self.parameters)
        gradients = sum(stored(*parameter) for parameter in self.parameters if parameter[2])
        # States have the type of the parameters that the optimizer sees: DeepSpeed's are float32 masters.
        state_size = 4 if is_deepspeed else gradients / max(self.trained, 1)
        optimizer = self._optimizer_state(state_size, is_flat=is_deepspeed) + (4 * self.trained if is_deepspeed else 0)
        frozen = self.count * size if is_deepspeed else sum(numel * own for numel, own, _ in self.parameters)
        if self.args.teacher == "cached" and not shards_weights:  # its head stays, its states are in a file
            head = self.head.weight
            frozen = head.numel() * (size if is_deepspeed else head.element_size())
        teacher = frozen if self.has_resident_teacher else 0

        uses_autocast = engine == "ddp" and self.mixed not in (None, self.loaded)
        activations = self._activations(*((None, self.mixed) if uses_autocast else (self.mixed, None)))
        heads = self._heads(uses_autocast, size)
        buffers, transient = self._buffers(engine, gpus, size, gradients)

        weights, teacher = shard(weights, shards_weights), shard(teacher, shards_weights)
        gradients = shard(gradients, engine not in ("ddp", "zero1"))
        optimizer = shard(optimizer, engine != "ddp")
        host = 0
        if engine == "zero3_offload":
            host = weights + gradients + optimizer + teacher
            weights = gradients = optimizer = teacher = 0
        accumulated = gradients if self.args.gradient_accumulation_steps > 1 or engine == "zero3" else 0
        # The weights as they were, and the slopes found elsewhere.
        guard = 2 * gradients if self.args.relearn_coef else 0
        forward = activations + heads + accumulated + guard
        backward = gradients + transient
        peak = weights + optimizer + teacher + buffers + max(forward, backward)
        return MemoryEstimate(
            engine, gpus, weights, gradients, optimizer, teacher, heads, activations, buffers, peak, host
        )

    def _optimizer_state(self, size: float, is_flat: bool) -> float:
        name = optimizer_name(self.args)
        if name == "adafactor":  # rows and columns of matrices, in float32; all of what DeepSpeed has flattened
            matrices = [shape for shape in self.trained_shapes if len(shape) > 1 and not is_flat]
            factors = sum(shape.numel() // shape[-1] + shape.numel() // shape[-2] for shape in matrices)
            return 4 * (factors + self.trained - sum(shape.numel() for shape in matrices))
        return OPTIMIZER_BYTES.get(name, 2 * size) * self.trained

    def _buffers(self, engine: str, gpus: int, size: int, gradients: int) -> tuple[float, float]:
        """Bytes of what an engine holds besides: throughout, and with the finished gradients at the end of a step."""
        head = self.head.weight
        largest = max((shape.numel() for shape in self.trained_shapes), default=0)
        if engine == "ddp":
            # The embedding's gradient is whole before it is added to that of a head it is tied to.
            is_tied = self.config.tie_word_embeddings and head.requires_grad
            return (gradients if gpus > 1 else 0), (head.numel() * head.element_size() if is_tied else 0)
        if engine in ZERO_BUCKETS:
            return ZERO_BUCKETS[engine] * size, max(largest * size, 4 * self.trained / gpus)
        layer = self.count / max(self.config.num_hidden_layers, 1)
        heads = head.numel() * (2 if self.has_resident_teacher else 1)
        if engine == "fsdp2":  # a layer in use and the next, both heads and the embedding
            return size * min(2 * layer + heads + head.numel(), 2 * self.count), size * largest
        live = min(ZERO3_LIVE, self.count) + (head.numel() if self.has_resident_teacher else 0)
        step = 0 if engine == "zero3_offload" else 4 * min(ZERO3_STEP, self.trained / gpus)
        return size * (live + layer), max(size * largest, step)

    def _heads(self, uses_autocast: bool, size: int) -> int:
        """A chunk of logits of student and teacher, the tiles' work, the head's gradient, final hidden states."""
        weight, dtype = self.head.weight, self.mixed or self.loaded
        vocabulary = len(weight)
        predicting = self.args.per_device_train_batch_size * (self.length - 1)
        predicted = self.rows * (self.length - 1) + (predicting if self.is_split else 0)
        chunk = min(chunk_tokens(vocabulary, dtype, "cuda"), predicted)
        if self.taught:
            chunk += min(chunk_tokens(vocabulary, dtype, "cuda", is_teacher=True), predicting)
        other = self.is_split or (self.taught and self.args.distill_temperature != 1)
        tensors = 1 + self.taught + other + (1 + self.taught + self.is_split if size == 2 else 0)
        found = (size * chunk + 4 * tensors * min(tile_rows(vocabulary, "cuda"), predicting)) * vocabulary
        hidden = weight.shape[1] * (self.loaded.itemsize if uses_autocast else size)
        found += hidden * self.rows * self.length + (hidden * predicting if self.taught else 0)
        if uses_autocast:
            found += 2 * (1 + self.taught) * weight.numel()
        if weight.requires_grad:  # summed in float32, then rounded to the type of the weights
            found += (4 + (2 if size == 2 else 0)) * weight.numel()
        return found

    def _activations(self, cast_to: torch.dtype | None, autocast: torch.dtype | None) -> int:
        """Bytes for the backward pass through the body of the model.

        ``A + A / layers``: all that autograd keeps, and as much again for the layer whose gradients are computed.
        With activation checkpointing ``layers * x + 2 * A / layers``, where x is the input of a layer. Autocast adds
        its copies of the weights, which it keeps for the whole forward.
        """
        if (cast_to, autocast) not in self._traced:
            self._traced[cast_to, autocast] = self._trace(cast_to, autocast)
        kept, copies = self._traced[cast_to, autocast]
        layers = self.config.num_hidden_layers
        if self.args.gradient_checkpointing:
            kept = layers * self._entry(cast_to) + kept / layers
        return int(copies + kept + self._traced[cast_to, autocast][0] / layers)

    def _entry(self, cast_to: torch.dtype | None) -> int:
        return self.rows * self.length * self.config.hidden_size * (cast_to or self.loaded).itemsize

    def _trace(self, cast_to, autocast) -> tuple[int, int]:
        try:
            return saved_for_backward(self.model, self.rows, self.length, cast_to, autocast)
        except (RuntimeError, ValueError, TypeError):  # such as experts that are chosen by values
            self.is_traced = False
            kept = self.config.num_hidden_layers * self._entry(cast_to) * UNTRACED_ACTIVATIONS
            return kept, 2 * self.count if autocast else 0


def build_on_meta(model_args: ModelArguments) -> PreTrainedModel:
    """The model as ``load_model`` would load it, without values; reads its configuration only."""
    config = load_config(model_args)
    if model_args.attn_implementation == "eager":
        config._attn_implementation = "eager"
    wanted = (config.dtype or torch.float32) if model_args.dtype == "auto" else getattr(torch, model_args.dtype)
    return made_without_values(config).to(wanted)  # type: ignore[arg-type]  # their decorator hides that it is bound


# ---- the table ------------------------------------------------------------------------------------------------------


def memory_table(model_args: ModelArguments, data_args: DataArguments, args: UnlearnConfig) -> str:
    """Estimates of all engines, in 10^9 bytes a GPU, and the file of ds_configs/ that fits each GPU in question.

    Counted for the GPUs of the run, or for 1, 8 and 64 where it is one process; compared with the GPU at hand, or
    with those of 24, 40, 80 and 141 GB where there is none.

    Raises:
        ConfigError: the model's configuration cannot be loaded.
    """
    step = StepMemory(model_args, data_args, args)
    counts = (args.world_size,) if args.world_size > 1 else GPU_COUNTS
    estimates = [step.estimate(engine, gpus) for gpus in counts for engine in ENGINES]
    numbers = ["weights", "gradients", "optimizer", "teacher", "heads", "activations", "buffers", "peak", "host"]
    lines = [
        f"{step.count / 1e9:.3g}e9 parameters, {step.trained / 1e9:.3g}e9 trained in {optimizer_name(args)}; "
        f"batch of {step.rows} rows x {step.length} tokens; GB (10^9 bytes) a GPU",
        f"{'engine':13} {'GPUs':>4} " + " ".join(f"{name:>11}" for name in numbers),
    ]
    for found in estimates:
        figures = " ".join(f"{getattr(found, name) / 1e9:>11.2f}" for name in numbers)
        lines.append(f"{found.engine:13} {found.gpus:>4} {figures}")
    if step.has_resident_teacher and args.teacher == "auto":
        lines.append("teacher: as long as it is in memory; of --teacher cached only the head stays there")
    lines.append("peak: at one time, so less than the sum; host: main memory a GPU, in place of the GPU's")
    if not step.is_traced:
        lines.append("activations: by a general formula, because this model's forward needs values")
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        cards = {f"{device.name}, {device.total_memory / 1e9:.0f} GB": device.total_memory}
    else:
        cards = {f"{size} GB": size * 10**9 for size in GPU_GIGABYTES}
    tight = []
    for card, memory in cards.items():
        fitting = [[e for e in estimates if e.gpus == gpus and e.peak * (1 + SPARE) <= memory] for gpus in counts]
        choices = [
            f"{gpus} GPU{'s' * (gpus > 1)}: {_start(found[0]) if found else 'none'}"
            for gpus, found in zip(counts, fitting, strict=True)
        ]
        lines.append(f"fits {card} with {SPARE:.0%} to spare: {'; '.join(choices)}")
        if not fitting[-1]:
            tight.append(card)
    if tight:
        lines.append(f"to fit {', '.join(tight)}: {_remedy(step, estimates[-1], model_args, args)}")
    return "\n".join(lines)


def optimizer_name(args: UnlearnConfig) -> str:
    """As ``--optim`` has it."""
    return OptimizerNames(args.optim).value


def _start(estimate: MemoryEstimate) -> str:
    return (
        "one process" if (estimate.engine, estimate.gpus) == ("ddp", 1) else f"ds_configs/{ENGINES[estimate.engine]}"
    )


def _remedy(step: StepMemory, tightest: MemoryEstimate, model_args: ModelArguments, args: UnlearnConfig) -> str:
    """What to change where not even the most sharded engine fits."""
    remedies = []
    if tightest.activations + tightest.heads > tightest.peak / 2:
        if not args.gradient_checkpointing:
            remedies.append(f"--{CHECKPOINTING} true")
        if args.per_device_train_batch_size > 1:
            remedies.append("a smaller --per_device_train_batch_size, with --gradient_accumulation_steps")
        remedies.append("a smaller --max_seq_length")
    if not step.mixed:
        remedies.append("--bf16 true")
    if not model_args.use_peft:
        remedies.append("--use_peft true (LoRA)")
    return ", ".join([*remedies, "more GPUs"])
