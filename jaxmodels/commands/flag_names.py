"""Flags that people know from elsewhere: each leads to ours, or to an explanation."""

from jaxmodels.errors import USAGE, Problem
from jaxmodels.runtime import settings

SYNONYMS = {
    "--lr": "--optim.peak-lr",
    "--learning-rate": "--optim.peak-lr",
    "--min-lr": "--optim.end-lr",
    "--weight-decay": "--optim.weight-decay",
    "--grad-clip": "--optim.clip",
    "--max-grad-norm": "--optim.clip",
    "--warmup-steps": "--optim.warmup",
    "--warmup-iters": "--optim.warmup",
    "--warmup-ratio": "--optim.warmup",
    "--lr-decay-iters": "--optim.schedule-steps",
    "--lr-scheduler-type": "--optim.schedule",
    "--optimizer": "--optim.name",
    "--beta1": "--optim.b1",
    "--beta2": "--optim.b2",
    "--batch-size": "--batch",
    "--gradient-accumulation-steps": "--accum",
    "--grad-accum": "--accum",
    "--max-steps": "--steps",
    "--max-iters": "--steps",
    "--num-steps": "--steps",
    "--train-steps": "--steps",
    "--eval-steps": "--eval-every",
    "--eval-interval": "--eval-every",
    "--eval-iters": "--eval-batches",
    "--save-steps": "--save-every",
    "--save-interval": "--save-every",
    "--save-total-limit": "--keep",
    "--dataset": "--data",
    "--output-dir": "--out",
    "--out-dir": "--out",
    "--init-from": "--init",
    "--precision": "--dtype",
    "--report": "--report-to",
    "--dropout": "--model.dropout",
    "--n-layer": "--model.layers",
    "--n-head": "--model.heads",
    "--n-embd": "--model.dim",
    "--block-size": "--model.context",
    "--seq-len": "--model.context",
    "--max-seq-length": "--model.context",
}
"""What nanoGPT, transformers' Trainer and their kin call it → our flag of the same meaning."""

_EPOCHS = (
    "a run is counted in steps, so that stopping, resuming and schedules are exact",
    "give --steps: an epoch is (tokens of the data) / (batch × context) steps, and `jaxmodels "
    "data inspect` counts the tokens; data are reshuffled each time round",
)
_BATCH = ("--batch counts the rows of all devices together", "give --batch and --mesh")
ELSEWHERE = {
    "--epochs": _EPOCHS,
    "--num-epochs": _EPOCHS,
    "--max-epochs": _EPOCHS,
    "--num-train-epochs": _EPOCHS,
    "--per-device-train-batch-size": _BATCH,
    "--per-device-batch-size": _BATCH,
    "--resume-from-checkpoint": (
        "a run resumes from its newest sound checkpoint by itself",
        "give the run directory as --out; --init PATH starts a new run from a checkpoint",
    ),
    "--bf16": ("the precision is one option", "give --dtype bfloat16"),
    "--fp16": ("float16 needs loss scaling, which bfloat16 does not", "give --dtype bfloat16"),
    "--gradient-checkpointing": ("it is called remat", "give --remat full, or --remat dots"),
    "--device": ("JAX takes the accelerator that it finds", "set JAX_PLATFORMS=cpu to keep it off"),
    "--wandb-log": ("trackers are one option", "give --report-to wandb"),
    "--compile": ("every step is compiled", "leave it out"),
    "--always-save-checkpoint": (
        "the newest checkpoints and the best one are kept",
        "leave it out; --save-every and --keep say how many",
    ),
    "--decay-lr": (
        "the learning rate always decays, to --optim.end-lr",
        "give --optim.end-lr the value of --lr for a constant rate",
    ),
}
"""What others call something that has no flag of the same meaning → (why, what to do)."""


def with_our_names(argv: list[str]) -> list[str]:
    """The arguments of `train` or `plan` with the flags of other trainers and of earlier versions
    replaced.

    Raises:
        Problem: (usage) it means something that is done otherwise here.
    """
    words = []
    for word in argv:
        flag, equals, value = word.partition("=")
        name = flag.replace("_", "-")
        if name in ELSEWHERE:
            why, fix = ELSEWHERE[name]
            raise Problem(f"there is no {flag}", why=why, fix=fix, exit_code=USAGE)
        words.append(SYNONYMS.get(name, flag) + equals + value)
    return _with_current_names(words)


def _with_current_names(argv: list[str]) -> list[str]:
    """Flags of earlier versions as they are now: --remat alone, --no-remat, renamed fields."""
    words: list[str] = []
    for old, new in settings.RENAMED.items():
        flags = {f"--optim.{spelt}": f"--optim.{new}" for spelt in (old, old.replace("_", "-"))}
        pairs = (word.partition("=") for word in argv)
        argv = [flags.get(flag, flag) + equals + value for flag, equals, value in pairs]
    for word, following in zip(argv, [*argv[1:], "-"], strict=False):
        if word == "--remat" and following.startswith("-"):
            words += [word, "full"]
        else:
            words += ["--remat", "none"] if word == "--no-remat" else [word]
    return words
