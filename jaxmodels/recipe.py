"""What a training run is made of, apart from the model's sizes."""

from dataclasses import dataclass, field
from typing import Literal

from jaxmodels.errors import LARGEST_SEED, USAGE, Problem, within


@dataclass(frozen=True)
class Optim:
    """An optimiser with global-norm clipping, linear warm-up and a schedule of decay.

    Raises:
        Problem: (usage) a value is out of its range.
    """

    name: Literal["adamw", "muon", "sgd", "lion", "adafactor"] = "adamw"
    """The optimiser. In bytes for each parameter: adamw remembers 8, lion 4, muon 4
    for a matrix and 8 for what it leaves to adamw, sgd nothing (with momentum 4), adafactor next to
    nothing."""
    schedule: Literal["cosine", "linear", "wsd"] = "cosine"
    """How the learning rate goes on after the warm-up: cosine and linear fall to end_lr at the
    last step; wsd (warm-up, stable, decay; Hu et al. 2024, arXiv:2404.06395) stays at the peak and
    falls linearly at the end, over `decay`."""
    peak_lr: float = 1e-3
    """Learning rate at the end of the warm-up."""
    init_lr: float = 0.0
    """Learning rate at step 0."""
    end_lr: float = 0.0
    """Learning rate at the last step."""
    least_lr: float = 0.0
    """Learning rate below which the decay does not go (seed 004)."""
    warmup: float = 0.05
    """Length of the warm-up: a fraction of all steps below 1, a number of steps from 1 on."""
    decay: float = 0.2
    """wsd: length of the decay, counted like `warmup`."""
    schedule_steps: int = 0
    """Steps that the schedule runs over, after which the learning rate stays at its end; 0: all
    steps of the run."""
    b1: float = 0.9
    """adamw, lion: decay of the first moment."""
    b2: float = 0.999
    """adamw: decay of the second moment; lion: of its only one."""
    eps: float = 1e-8
    """adamw: added to the root of the second moment."""
    muon_rms: float = 0.2
    """muon: root mean square of a step at a learning rate of 1. With 0.2, about adamw's, adamw's
    rates and decay can be kept (Liu et al. 2025, arXiv:2502.16982)."""
    muon_skip: tuple[str, ...] = ("head/*", "match/*")
    """muon: path patterns of kernels that are left to adamw, as all is that is no kernel."""
    momentum: float = 0.0
    """sgd: decay of the running sum of gradients; 0 keeps none."""
    weight_decay: float = 1e-4
    """Decoupled weight decay, times the learning rate."""
    no_decay: tuple[str, ...] = ()
    """Path patterns of parameters without weight decay, such as "*/norm1/*"."""
    lr_scale: tuple[tuple[str, float], ...] = ()
    """Path patterns with what the learning rate is multiplied by there; the first that matches
    wins, what none matches has 1. At 0 a parameter is frozen: no gradient, no update, no decay,
    nothing remembered. As a flag: --optim.lr-scale "dinov2/*" 0.1 "embed/*" 0."""
    clip: float = 1.0
    """Largest global norm of a gradient; 0 turns clipping off."""

    def __post_init__(self) -> None:
        rates = ("peak_lr", "init_lr", "end_lr", "least_lr")
        for name in (*rates, "warmup", "decay", "eps", "muon_rms", "weight_decay", "clip"):
            within(f"optim.{name}", getattr(self, name), 0)
        within("optim.schedule_steps", self.schedule_steps, 0)
        for name in ("b1", "b2", "momentum"):
            within(f"optim.{name}", getattr(self, name), 0, 1, below=True)
        for text, factor in self.lr_scale:
            within(f"optim.lr_scale of {text}", factor, 0)


@dataclass(frozen=True)
class Recipe:
    """Data, batch, steps, optimiser, precision and what is written when.

    Raises:
        Problem: (usage) a value is out of its range.
    """

    data: str = "pydoc"
    """Where the text comes from: pydoc, text:PATH, bin:PATH, … (`jaxmodels data list`); several
    texts by weight: mix:3*text:books,1*jsonl:web.jsonl#body."""
    tokenizer: str = "chars"
    """What turns text into tokens: chars (the text's own characters, <PAD> and <UNK>), bare-chars
    (its characters alone, as in seed 000's code: any other is taken for the first), gpt2, or the
    path of a tokenizer.json or characters.json."""
    vocab_documents: int = 1000
    """With chars, of a dataset that is read while one trains (c4, wikipedia, tfds:NAME): the
    vocabulary is that of this many documents, from the first on."""
    segments: bool = False
    """Tokens see only their own document; needs a tokeniser with an end of text."""
    batch: int = 32
    """Sequences in a micro-batch, over all devices."""
    accum: int = 1
    """Micro-batches whose gradients are averaged into one optimiser step."""
    slices: int = 0
    """Parts that a micro-batch is computed in, one after the other; 0 chooses: one on an
    accelerator, as many on a CPU as keep activations in its caches. Needs a loss that is a
    mean over rows: one that compares rows (`WHOLE`) takes a micro-batch whole."""
    steps: int = 1000
    """Optimiser steps in the whole run; the learning-rate schedule ends here, unless
    `optim.schedule_steps` says otherwise."""
    seed: int = 0
    """Seeds parameters, dropout and data order."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the computation; parameters and optimiser stay in float32."""
    remat: Literal["none", "full", "dots"] = "none"
    """What is computed again in the backward pass, for less memory and more time: none; full, all
    inside of a block (--remat alone); dots, all but a block's large products."""
    mesh: str = ""
    """Devices by axis, such as "data=2,model=4"; empty puts all devices on the data axis."""
    min_freq: int = 1
    """With chars: a character must occur this often to enter the vocabulary."""
    valid_fraction: float = 0.05
    """Share of the text, from its end, that is held out for validation."""
    eval_every: int = 200
    """Steps between evaluations."""
    patience: int = 0
    """End the run after this many evaluations in a row without a lower validation loss (exit code
    0); 0 trains to the last step."""
    eval_batches: int = 20
    """Most validation batches in one evaluation."""
    save_every: int = 200
    """Steps between checkpoints."""
    save_minutes: float = 0.0
    """Minutes between checkpoints, besides those by steps; 0 saves by steps only."""
    keep: int = 2
    """Newest sound checkpoints kept, besides the best by validation loss."""
    sample_every: int = 200
    """Steps between printed samples; 0 turns them off."""
    prompt: str = "The "
    """Text that printed samples continue."""
    stats_every: int = 0
    """Steps between statistics of every parameter and its gradient; 0 turns them off."""
    jump: float = 0.0
    """Save a checkpoint, and keep it, when the loss differs from that of the step before by more
    than this (nats); 0 turns it off. Seed 003 takes 1.5."""
    ema_decay: float = 0.0
    """Decay of a running average of the parameters (EMA), such as 0.999, beside those that are
    trained; 0 keeps none. In step t it is at most (1 + t)/(10 + t), so that short runs average too.
    Validation and samples are those of the average; --weights chooses elsewhere."""
    on_divergence: Literal["stop", "rollback"] = "stop"
    """When the loss or the parameters are no finite numbers any more: stop (exit code 8), or roll
    back to the newest checkpoint and go on from there, past the data that led to it; a third
    time in a row from the same checkpoint stops too."""
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
        if self.slices and self.batch % self.slices:
            raise Problem(
                f"slices must divide the batch of {self.batch}, which {self.slices} does not",
                fix="change --slices or --batch; --slices 0 chooses",
                exit_code=USAGE,
            )

    @property
    def horizon(self) -> int:
        """Steps that the learning rate's schedule runs over."""
        return self.optim.schedule_steps or self.steps
