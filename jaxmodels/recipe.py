"""The settings of a training run, except the model's sizes."""

import re
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from jaxmodels.errors import LARGEST_SEED, USAGE, Problem, within


@dataclass(frozen=True)
class Optim:
    """An optimiser with global-norm clipping, linear warm-up and a schedule of decay.

    Raises:
        Problem: (usage) a value is out of its range.
    """

    name: Literal["adamw", "muon", "sgd", "lion", "adafactor"] = "adamw"
    """The optimiser. Its state in bytes for each parameter: adamw 8, lion 4, muon 4 for a matrix
    (8 for what it leaves to adamw), sgd none (with momentum 4), adafactor next to none."""
    schedule: Literal["cosine", "linear", "wsd"] = "cosine"
    """The learning rate after the warm-up: cosine and linear fall to end-lr at the last step; wsd
    (warm-up, stable, decay; Hu et al. 2024, arXiv:2404.06395) stays at the peak and falls
    linearly at the end, over --optim.decay."""
    peak_lr: float = 1e-3
    """Learning rate at the end of the warm-up."""
    init_lr: float = 0.0
    """Learning rate at step 0."""
    end_lr: float = 0.0
    """Learning rate at the last step."""
    min_lr: float = 0.0
    """Floor of the learning rate during the decay."""
    warmup: float = 0.05
    """Length of the warm-up: a fraction of all steps below 1, a number of steps from 1 on."""
    decay: float = 0.2
    """wsd: length of the decay, as a fraction or a number of steps like --optim.warmup."""
    schedule_steps: int = 0
    """Length of the schedule in steps, after which the learning rate stays at its end; 0 means
    --steps. Set it to train a finished run longer without raising the rate again (Megatron's
    --lr-decay-iters)."""
    b1: float = 0.9
    """adamw, lion: decay of the first moment."""
    b2: float = 0.999
    """adamw: decay of the second moment; lion: of its single moment."""
    eps: float = 1e-8
    """adamw: added to the root of the second moment."""
    muon_rms: float = 0.2
    """muon: root mean square of a step at a learning rate of 1. With 0.2, about adamw's, adamw's
    rates and decay can be kept (Liu et al. 2025, arXiv:2502.16982)."""
    muon_skip: tuple[str, ...] = ("head/*", "match/*")
    """muon: path patterns of kernels that adamw updates, as it does all that is not a kernel."""
    momentum: float = 0.0
    """sgd: decay of the running sum of gradients; 0 keeps none."""
    weight_decay: float = 1e-4
    """Decoupled weight decay, times the learning rate."""
    no_decay: tuple[str, ...] = ()
    """Path patterns of parameters without weight decay, such as "*/norm1/*"."""
    lr_scale: tuple[tuple[str, float], ...] = ()
    """Path patterns, each with a factor for the learning rate; the first match wins, and without a
    match the factor is 1. A factor of 0 freezes: no gradient, update, decay or optimiser state.
    As a flag: --optim.lr-scale "dinov2/*" 0.1 "embed/*" 0."""
    clip: float = 1.0
    """Largest global norm of a gradient; 0 turns clipping off."""

    def __post_init__(self) -> None:
        rates = ("peak_lr", "init_lr", "end_lr", "min_lr")
        for name in (*rates, "warmup", "decay", "eps", "muon_rms", "weight_decay", "clip"):
            within(f"optim.{name}", getattr(self, name), 0)
        within("optim.schedule_steps", self.schedule_steps, 0)
        for name in ("b1", "b2", "momentum"):
            within(f"optim.{name}", getattr(self, name), 0, 1, below=True)
        for text, factor in self.lr_scale:
            within(f"optim.lr_scale of {text}", factor, 0)


TRACKERS = ("tensorboard", "wandb", "trackio")
"""What `Recipe.report_to` may name."""


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters: what `--lora rank=8,alpha=16,targets=PATTERN` means."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = ()
    """Path patterns of the kernels; () for the architecture's own choice."""

    @property
    def scale(self) -> float:
        """The factor of A·B."""
        return self.alpha / self.rank

    @classmethod
    def parse(cls, text: str) -> "Lora":
        """Reads `rank=8,alpha=16,targets=PATTERN`; `|` separates patterns, and alpha is the rank
        unless given.

        Raises:
            Problem: (usage) it has another form, or rank or alpha are not positive.
        """
        parts = [part.strip() for part in text.split(",")]
        found = dict(part.partition("=")[::2] for part in parts)
        try:
            rank = int(found.pop("rank"))
            alpha = float(found.pop("alpha", rank))
            targets = tuple(filter(None, found.pop("targets", "").split("|")))
            twice = len({part.partition("=")[0] for part in parts}) < len(parts)
            if found or twice or rank < 1 or not 0 < alpha < inf:
                raise ValueError
        except (KeyError, ValueError):
            raise Problem(
                f"--lora cannot be {text!r}",
                why="its form is rank=8,alpha=16,targets=PATTERN: rank is an integer from 1 on, "
                "alpha a number above 0; alpha (the rank) and targets have defaults",
                fix="for example --lora rank=8,alpha=16",
                exit_code=USAGE,
            ) from None
        return cls(rank, alpha, targets)


@dataclass(frozen=True)
class Recipe:
    """Data, batch, steps, optimiser, precision, and when to evaluate, save and sample.

    Raises:
        Problem: (usage) a value is out of its range.
    """

    data: str = "pydoc"
    """The data: pydoc, text:PATH, bin:PATH, …; for images with captions shapes, images:FOLDER, …;
    for questions about images questions:shapes, questions:FOLDER. Several sources by weight:
    mix:3*text:books,1*jsonl:web.jsonl#body (for a wigip with images also mix:1*pydoc,8*shapes:
    each batch is text or images). `jaxmodels data list` shows all forms."""
    tokenizer: str = "chars"
    """What turns text into tokens: chars (the text's own characters, <PAD> and <UNK>), bare-chars
    (its characters alone: any other becomes the first of them, as in wigip's own code), gpt2; one
    made from the text that is trained on, of so many tokens: bpe:4096, unigram:4096, chars:200, or
    bytes; or the path of a tokenizer.json, characters.json or sentencepiece model."""
    vocab_documents: int = 1000
    """With chars and streamed data (c4, wikipedia, tfds:NAME): build the vocabulary from the first
    this many documents."""
    segments: bool = False
    """Tokens attend only to their own document; needs a tokeniser with an end-of-text token."""
    batch: int = 32
    """Sequences in a micro-batch, over all devices."""
    accum: int = 1
    """Micro-batches whose gradients are averaged into one optimiser step."""
    slices: int = 0
    """Split each micro-batch into this many slices, computed one after the other; 0 chooses: 1 on
    an accelerator, on a CPU as many as keep activations in its caches. Not for a loss that compares
    rows with each other, such as bitgen's."""
    steps: int = 1000
    """Optimiser steps of the run; the learning-rate schedule ends here unless
    --optim.schedule-steps is set."""
    seed: int = 0
    """Seeds parameters, dropout and data order."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the computation; parameters and optimiser stay in float32."""
    remat: Literal["none", "full", "dots"] = "none"
    """What the backward pass recomputes, to save memory at the cost of time: none; full, all
    inside a block (--remat alone); dots, all but a block's large matrix products."""
    mesh: str = ""
    """Devices by axis, such as "data=2,model=4"; empty puts all devices on the data axis."""
    xla: tuple[str, ...] = ()
    """Options for XLA's compiler, each NAME=VALUE, over those that the platform has chosen."""
    min_freq: int = 1
    """With chars: a character must occur this often to enter the vocabulary."""
    valid_fraction: float = 0.05
    """Share of the text, from its end, that is held out for validation."""
    eval_every: int = 200
    """Steps between evaluations on held-out data."""
    patience: int = 0
    """End the run after this many evaluations in a row without a lower validation loss (exit code
    0); 0 trains to the last step."""
    eval_batches: int = 20
    """Validation batches in one evaluation, at most."""
    save_every: int = 200
    """Steps between checkpoints."""
    save_minutes: float = 0.0
    """Also save a checkpoint when this many minutes have passed since the last; 0 turns it off."""
    keep: int = 2
    """Newest checkpoints to keep, besides the best by validation loss."""
    sample_every: int = 200
    """Steps between printed samples; 0 turns them off."""
    prompt: str = "The "
    """Text that printed samples continue."""
    stats_every: int = 0
    """Steps between statistics of every parameter and its gradient; 0 turns them off."""
    jump: float = 0.0
    """Save and keep a checkpoint when the loss changes by more than this (nats) from one step to
    the next, such as 1.5; 0 turns it off."""
    ema_decay: float = 0.0
    """Decay of a running average of the parameters (EMA), such as 0.999; 0 keeps no average. At
    step t the decay is at most (1 + t)/(10 + t), so that short runs average too. Validation and
    samples use the average; eval, generate and convert choose by --weights."""
    report_to: str = "tensorboard"
    """Where metrics go besides metrics.jsonl: tensorboard, wandb, trackio, several with commas, or
    none. One that fails is dropped; it never ends a run."""
    lora: str = ""
    """rank=8,alpha=16[,targets=PATTERN]: freeze the model of --init and train low-rank adapters of
    its matrices (LoRA). PATTERN is of their paths, as in blocks/*/attn/*; | separates several; by
    default all matrices in the blocks (of bitgen: of its text encoder and decoder)."""
    on_divergence: Literal["stop", "rollback"] = "stop"
    """When the loss or a parameter becomes NaN or infinite: stop (exit code 8), or rollback:
    continue from the newest checkpoint and skip the data that led there; the third time in a row
    from the same checkpoint stops too."""
    optim: Optim = field(default_factory=Optim)
    """The optimiser and its schedule."""

    def __post_init__(self) -> None:
        for name in ("batch", "accum", "steps", "min_freq", "eval_every", "save_every", "keep"):
            within(name, getattr(self, name), 1)
        within("vocab_documents", self.vocab_documents, 1)
        for name in ("slices", "eval_batches", "patience", "sample_every", "stats_every", "jump"):
            within(name, getattr(self, name), 0)
        within("save_minutes", self.save_minutes, 0)
        within("seed", self.seed, 0, LARGEST_SEED)
        within("valid_fraction", self.valid_fraction, 0, 1, below=True)
        within("ema_decay", self.ema_decay, 0, 1, below=True)
        for name in self.trackers:
            if name not in TRACKERS:
                raise Problem(
                    f"--report-to cannot be {name!r}",
                    why=f"known: {', '.join((*TRACKERS, 'none'))}",
                    fix="several are separated by commas: --report-to tensorboard,wandb",
                    exit_code=USAGE,
                )
        if self.lora:
            Lora.parse(self.lora)
        for setting in self.xla:
            if not re.fullmatch(r"\w+=.+", setting):
                raise Problem(
                    f"--xla takes NAME=VALUE, not {setting!r}",
                    fix="for example --xla xla_tpu_scoped_vmem_limit_kib=65536",
                    exit_code=USAGE,
                )
        if self.slices and self.batch % self.slices:
            raise Problem(
                f"slices must divide the batch of {self.batch}, which {self.slices} does not",
                fix="change --slices or --batch; --slices 0 chooses",
                exit_code=USAGE,
            )

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names in `report_to`."""
        return () if self.report_to == "none" else tuple(self.report_to.split(","))

    @property
    def adapters(self) -> Lora | None:
        """The setting `lora`; None without it."""
        return Lora.parse(self.lora) if self.lora else None

    @property
    def horizon(self) -> int:
        """Length of the learning-rate schedule in steps."""
        return self.optim.schedule_steps or self.steps
