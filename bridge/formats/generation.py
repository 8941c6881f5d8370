"""generation_config.json: a model's settings for transformers' `generate`."""

from pathlib import Path
from typing import Any

import jaxmodels
from bridge.formats.tokenizer import padding
from bridge.storage.safetensors_reader import parse_json
from data_pipelines.captions.tokens import padding as caption_padding
from data_pipelines.tokenizers import CharTokenizer, Tokenizer
from jaxmodels.runtime.training.samples import can_caption, end_token

GENERATION = "generation_config.json"
# The keys of a generation_config.json that are taken over.
_DRAWING = (
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "do_sample",
    "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "num_beams", "num_beam_groups", "diversity_penalty", "num_return_sequences", "early_stopping",
    "penalty_alpha", "max_length", "max_new_tokens", "min_length", "min_new_tokens", "use_cache",
    "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens",
    "bad_words_ids", "renormalize_logits", "output_attentions", "output_hidden_states",
    "output_scores", "return_dict_in_generate",
)  # fmt: skip


def read_generation(folder: Path) -> dict[str, Any]:
    """The known settings of a folder's generation_config.json."""
    return drawing(parse_json(folder / GENERATION) if (folder / GENERATION).is_file() else {})


def drawing(given: Any) -> dict[str, Any]:
    """The known keys of a generation_config.json whose values are numbers, booleans or lists."""
    if not isinstance(given, dict):
        return {}
    plain = int | float | list
    return {key: given[key] for key in _DRAWING if isinstance(given.get(key), plain)}


def generation_config(
    tokenizer: Tokenizer | None, config: Any, given: dict[str, Any]
) -> dict[str, Any]:
    """Settings for transformers' `generate`: ids that are never drawn, and those that end a text.

    `given` are the source's settings, which take precedence.
    """
    special = tokenizer.special_ids if tokenizer else ()
    values: dict[str, Any] = {"suppress_tokens": [*special, *padding(config)]}
    if isinstance(tokenizer, CharTokenizer) and tokenizer.pad_id is not None:
        values["pad_token_id"] = tokenizer.pad_id
    values |= ends(tokenizer)
    if "eos_token_id" in values:
        values["pad_token_id"] = values["eos_token_id"]
    return {name: value for name, value in (values | given).items() if value != []}


def caption_ends(arch: str, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """transformers' keys for the end of a caption, if the architecture writes captions."""
    if tokenizer is None or not can_caption(jaxmodels.arch(arch).Model):
        return {}
    return {"eos_token_id": end_token(tokenizer), "pad_token_id": caption_padding(tokenizer)}


def ends(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """transformers' keys for the id between documents; empty if there is none."""
    end = tokenizer.end_of_text if tokenizer else None
    return {} if end is None else {"bos_token_id": end, "eos_token_id": end}
