"""The model's arguments in checkpoints of nanoGPT and its forks."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bridge.legacy.values import Named, Record
from jaxmodels.errors import MISMATCH, Problem

# nanoGPT's model_args, in its order → field of wikigpt's Config.
ARGS = {
    "n_layer": "layers",
    "n_head": "heads",
    "n_embd": "dim",
    "block_size": "context",
    "bias": "bias",
    "vocab_size": "vocab",
    "dropout": "dropout",
}
# Arguments of forks that do not change a trained model's outputs: about its computation, devices,
# initialisation and training.
_IDLE = re.compile(
    r"device(_type|_id|s)?|(torch_|ptd)?dtype|amp|compile[dr]?|seed|verbose|name"
    r"|(use_)?(flash|sdpa|sdp|torch_compile|fused\w*)(_?att(entio)?n)?"
    r"|(use_)?(gradient|grad|activation)_?(checkpoint|ckpt)(ing)?"
    r"|(micro_|mini_)?batch_size|gradient_accumulation_steps"
    r"|init(ializer)?_(std|range)|(attn|resid|embd|emb|mlp|attention|residual)_?(p?drop|dropout)"
    r"|learning_rate|min_lr|max_iters|max_steps|lr_decay_iters|warmup_(iters|steps)|weight_decay"
    r"|beta[12]|grad_clip|eval_(interval|iters)|log_interval"
)
_CONFIG_CLASS = re.compile(r"transformers\.models\.(?P<type>\w+)\.configuration_\w+\.\w+Config")
# Keys under which trainers keep a model's settings.
_KEYS = {"config", "args", "hparams", "hyper_parameters", "model_config", "cfg"}
# Words in names of settings that do change a model's outputs.
_CHANGES = re.compile(
    r"(.*_)?(mup|rope|rotary|alibi|moe|experts?|kv_heads?|qk_?norm|soft_?cap|rms_?norm|swiglu"
    r"|activation|act_fn|sliding_window)(_.*)?"
)


def args_of(value: Any) -> dict[str, Any] | None:
    """The model's arguments in a torch file of nanoGPT or a relative of it; else None.

    nanoGPT saves a dict; build-nanogpt, and others after it, the dataclass `GPTConfig`.
    """
    if not isinstance(value, dict):
        return None
    if args := next((args for key, args in _settings(value) if key == "model_args"), None):
        return args
    sizes = ARGS.keys() - {"bias", "dropout"}
    known = (value.get(key) for key in ("config", "model_config", "gptconf"))
    return next((args for args in known if isinstance(args, dict) and sizes <= args.keys()), None)


def beside(value: Any, where: Path) -> dict[str, Any]:
    """The number of heads, from settings that some trainer saved beside a model with nanoGPT's
    names: its own, Lightning's, or a command's arguments.

    Raises:
        Problem: (mismatch) they name something that nanoGPT's model does not have.
    """
    for key, settings in _settings(value):
        if key not in _KEYS or not {"n_head", "n_embd"} <= settings.keys():
            continue
        if _type_of(settings):
            continue
        odd = {
            n: x for n, x in settings.items() if isinstance(n, str) and _CHANGES.fullmatch(n) and x
        }
        if odd:
            raise _changed(odd, where)
        return {"heads": settings["n_head"]}
    return {}


def transformers_config(value: Any) -> dict[str, Any] | None:
    """The config of a class of transformers that a trainer saved beside its model: the object, or
    a dict of what it says. None without one, or if there are several."""
    found: list[dict[str, Any]] = []
    for key, settings in _settings(value):
        if key in _KEYS and (kind := _type_of(settings)):
            public = {n: x for n, x in settings.items() if isinstance(n, str) and n[:1] != "_"}
            config = {n: x for n, x in public.items() if _is_json(x)} | {"model_type": kind}
            found += [] if config in found else [config]
    return found[0] if len(found) == 1 else None


def _type_of(settings: dict[str, Any]) -> str | None:
    """The model_type of a config of transformers; None if these are other settings."""
    if isinstance(settings, Record) and (match := _CONFIG_CLASS.fullmatch(settings.name)):
        return match["type"]
    kind = settings.get("model_type")
    known = {"architectures", "transformers_version"} & settings.keys()
    return kind if isinstance(kind, str) and known else None


def _is_json(value: Any) -> bool:
    if isinstance(value, Record | Named):
        return False
    if isinstance(value, dict):
        return all(isinstance(n, str) and _is_json(x) for n, x in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    return value is None or isinstance(value, str | bool | int | float)


def _settings(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """All nested dicts with their keys, outer ones first, each once."""
    level: list[Any] = [value]
    seen: set[int] = set()
    for _ in range(4):
        inside = [pair for node in level if isinstance(node, dict) for pair in node.items()]
        level = []
        for key, item in inside:
            if isinstance(key, str) and isinstance(item, dict) and id(item) not in seen:
                seen.add(id(item))
                level.append(item)
                yield key, item


def fields(args: dict[str, Any], where: Path) -> dict[str, Any]:
    """Fields of wikigpt's Config, from `model_args`.

    Raises:
        Problem: (mismatch) it has arguments that nanoGPT does not have.
    """
    unknown = {n: x for n, x in args.items() if n not in ARGS and not _is_idle(n, args)}
    if unknown:
        raise _changed(unknown, where)
    return {field: args[name] for name, field in ARGS.items() if name in args}


def _changed(unknown: dict[Any, Any], where: Path) -> Problem:
    """The error for arguments of an incompatible fork."""
    listed = [f"{name} = {str(value)[:40]}" for name, value in unknown.items()]
    return Problem(
        f"nanoGPT has no model argument {str(next(iter(unknown)))[:80]!r}",
        where=str(where),
        why=f"a fork of nanoGPT wrote this: {', '.join(listed[:10])}; what it computes is unknown",
        fix="results might be wrong; if you know that these arguments have no effect, save the "
        "checkpoint again without them",
        exit_code=MISMATCH,
    )


def idle_notes(args: dict[str, Any]) -> list[str]:
    """A note on arguments that nanoGPT does not have and that do not change outputs."""
    idle = [name for name in args if name not in ARGS]
    if not idle:
        return []
    listed = ", ".join(f"{name} = {str(args[name])[:40]}" for name in idle)
    return [f"arguments of a fork of nanoGPT, without effect on the model's outputs: {listed}"]


def _is_idle(name: Any, args: dict[str, Any]) -> bool:
    value = args[name]
    plain = value is None or isinstance(value, str | bool | int | float | Named)
    plain |= isinstance(value, Record) and value.name == "torch.device"
    return plain and isinstance(name, str) and _IDLE.fullmatch(name) is not None
