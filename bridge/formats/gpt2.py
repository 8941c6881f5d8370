"""What transformers' config of a GPT-2 says, and how it is written.

Source: transformers' `GPT2Config` and what its `GPT2LMHeadModel` does with each key.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bridge.formats import model_files, nanogpt
from bridge.formats.config_keys import ITS_CLASS, check_only, named_class, unsupported
from bridge.formats.raw import RawCheckpoint, take_tokenizer, upstream_of, with_upstream

ARCH, CONFIG = "wikigpt", "config.json"

# transformers' key → our field.
FIELDS = {
    "vocab_size": "vocab",
    "n_positions": "context",
    "n_embd": "dim",
    "n_layer": "layers",
    "n_head": "heads",
    "n_inner": "hidden",
    "resid_pdrop": "dropout",
}
# What transformers takes when a key is missing, of what the tensors do not tell.
USUAL = {"heads": 12, "dropout": 0.1, "gelu": "tanh"}
# transformers' other names for its keys.
ALIASES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
ACTIVATION, TIE = "activation_function", "tie_word_embeddings"
_GELU = {
    "gelu": "exact",
    "gelu_python": "exact",
    "gelu_accurate": "tanh",
    "gelu_fast": "tanh",
    "gelu_new": "tanh",
    "gelu_python_tanh": "tanh",
    "gelu_pytorch_tanh": "tanh",
}

# Keys that change what is computed, and the only value that wikigpt computes.
ONLY = {
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "is_causal": True,
}
# Keys that change no logits: what else GPT2Config has, and what transformers writes into any
# config, or once did.
_IDLE = set(
    "model_type architectures transformers_version dtype torch_dtype use_cache initializer_range "
    "embd_pdrop attn_pdrop reorder_and_upcast_attn n_ctx vocab_size gradient_checkpointing "
    "bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id prefix "
    "id2label label2id num_labels problem_type finetuning_task return_dict torchscript "
    "use_bfloat16 is_decoder is_encoder_decoder cross_attention_hidden_size "
    "tie_encoder_decoder chunk_size_feed_forward tokenizer_class task_specific_params "
    "max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty "
    "temperature top_k top_p typical_p repetition_penalty encoder_no_repeat_ngram_size "
    "length_penalty no_repeat_ngram_size bad_words_ids num_return_sequences "
    "forced_bos_token_id forced_eos_token_id remove_invalid_values suppress_tokens "
    "begin_suppress_tokens exponential_decay_length_penalty bias tokens".split()
)
_IDLE_STARTS = "_", "summary_", "output_", "tf_"


def described(
    contents: RawCheckpoint, config: dict[str, Any], said: dict[str, Any], folder: Path
) -> RawCheckpoint:
    """Contents with what a config says of them.

    Args:
        contents: the tensors.
        config: what is said, with the model_type.
        said: config.json as it is.
        folder: where it lies.

    Raises:
        Problem: (mismatch) the config asks for what wikigpt does not compute, or has keys of
            which nobody knows what they do.
    """
    named = said.get("model_type") is not None or said.get("architectures") is not None
    own = "block_size" in config and not named  # nanoGPT's arguments, as a hub mixin saves them
    path = folder / CONFIG
    fields = nanogpt.fields(said, path) if own else fields_of(config, path)
    unknown = [] if own else _unknown(config)
    kind = named_class(said)
    if unknown and not (named and ITS_CLASS.fullmatch(kind or "GPT2Model")):
        whose = f"nor the class {kind[:80]!r}" if kind else "nor whose config this is"
        raise unsupported(
            unknown[0], config[unknown[0]], f"what it does is not known, {whose}", path
        )
    # Where nothing says that transformers wrote it, its usual values are no answer either.
    usual = {n: value for n, value in USUAL.items() if n not in fields} if named else {}
    idle = nanogpt.idle_notes(said) if own else []
    notes = [*contents.notes, *idle, *_ties(contents, config, path), *_notes(config, unknown)]
    # Whatever is written from here on is tied.
    said = {key: value for key, value in said.items() if key != TIE or value is True}
    result = replace(
        contents,
        format="gpt2",
        arch=ARCH,
        fields=fields,
        usual=usual,
        notes=notes,
        origin=with_upstream(contents.origin, "gpt2", said),
    )
    if folder == contents.path:
        result.moments = partial(model_files.read_moments, folder)
    take_tokenizer(result, folder)
    return result


def written_config(config: Any, keys: dict[str, Any], origin: dict[str, Any]) -> dict[str, Any]:
    """config.json of a GPT-2 folder: what it was, where that still holds, or made anew.

    Args:
        config: wikigpt's Config.
        keys: transformers' keys for it.
        origin: what is known of where the model comes from.
    """
    was = upstream_of(origin, "gpt2")
    extra = {
        name: getattr(config, name)
        for name, usual in (("bias", True), ("tokens", config.vocab))
        if getattr(config, name) != usual
    }
    if was.get("model_type") != "gpt2":
        return {**keys, **extra}
    was = _by_own_keys(was, Path(CONFIG))
    now = fields_of({**was, **keys, **extra}, Path(CONFIG))
    before = {**USUAL, **fields_of(was, Path(CONFIG))}
    if all(before.get(name, value) == value for name, value in now.items()):
        return was
    return {**was, **keys, **extra}


def fields_of(config: dict[str, Any], where: Path) -> dict[str, Any]:
    """Fields of wikigpt's Config that a GPT-2 config says.

    Raises:
        Problem: (mismatch) it asks for what wikigpt does not compute.
    """
    config = _by_own_keys(config, where)
    check_only(config, ONLY, ARCH, where)
    if config.get("pruned_heads"):
        raise unsupported(
            "pruned_heads", config["pruned_heads"], "all blocks have the same heads", where
        )
    fields = {ours: config[key] for key, ours in FIELDS.items() if key in config}
    if "hidden" in fields and fields["hidden"] is None:
        fields.pop("hidden")  # four times the width
        fields |= {"hidden": 4 * fields["dim"]} if type(fields.get("dim")) is int else {}
    if ACTIVATION in config:
        name = config[ACTIVATION]
        if not isinstance(name, str) or name not in _GELU:
            known = f"wikigpt computes {', '.join(_GELU)} only"
            raise unsupported(ACTIVATION, name, known, where)
        fields["gelu"] = _GELU[name]
    # Ours, which transformers passes over: a model without biases has zeros in their place.
    fields |= {name: config[name] for name in ("bias", "tokens") if name in config}
    return fields


def _by_own_keys(config: dict[str, Any], where: Path) -> dict[str, Any]:
    """The config under GPT-2's own keys."""
    result = {key: value for key, value in config.items() if key not in ALIASES}
    for alias in ALIASES.keys() & config.keys():
        key = ALIASES[alias]
        if result.setdefault(key, config[alias]) != config[alias]:
            other = f"{key}, which is the same, is {str(result[key])[:80]}"
            raise unsupported(alias, config[alias], other, where)
    return result


def _unknown(config: dict[str, Any]) -> list[str]:
    known = {*FIELDS, *ALIASES, *ONLY, *_IDLE, ACTIVATION, TIE, "pruned_heads"}
    return [key for key in config if key not in known and not key.startswith(_IDLE_STARTS)]


def _ties(contents: RawCheckpoint, config: dict[str, Any], where: Path) -> list[str]:
    """What is to be said of a head that the config does not tie: its values are compared later.

    Raises:
        Problem: (mismatch) the head or the embedding is not there.
    """
    if config.get(TIE, True):
        return []
    for ends in (("lm_head.weight", "lm_head.decoder.weight"), ("wte.weight",)):
        if not any(name.endswith(ends) for name in contents.tensors):
            raise unsupported(TIE, config.get(TIE), f"{ends[0]} is not there", where)
    return [f"{TIE} is false, but the head repeats the embedding: here it is tied"]


def _notes(config: dict[str, Any], unknown: list[str]) -> list[str]:
    notes = []
    rates = {key: config.get(key, 0.1) for key in ("embd_pdrop", "attn_pdrop", "resid_pdrop")}
    if any(rate != rates["resid_pdrop"] for rate in rates.values()):
        notes.append(f"dropout is that of resid_pdrop; the config has {rates}")
    if unknown:
        notes.append(f"transformers' GPT-2 does not read these keys: {', '.join(unknown)[:200]}")
    return notes
