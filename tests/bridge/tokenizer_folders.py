"""Small tokenisers in the files that their own libraries write, and a small GPT-2 beside them."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel

END = "<|endoftext|>"
_TEXTS = ["hello world, this is a test", "the quick brown fox jumps 123 45", "äöü ß 漢字 🎉"]
_COLLECTING = {"content": "", "single_word": False, "lstrip": False, "rstrip": False}
FLAGS = _COLLECTING | {"normalized": False, "special": False}


@cache
def trained(size: int = 280, end: bool = True) -> str:
    """tokenizer.json of a byte-level BPE that `tokenizers` trained."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END] if end else [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(_TEXTS, trainer)
    return made.to_str()


def slow_files(folder: Path, **beside: Any) -> int:
    """vocab.json and merges.txt as slow tokenizers wrote them, and `beside`: NAME=content of
    NAME.json. Returns the number of tokens."""
    model = json.loads(trained())["model"]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    for name, content in beside.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return len(model["vocab"])


def save_model(folder: Path, rows: int) -> Path:
    """A random GPT-2 of so many rows, as transformers saves it (with nanoGPT's exact GELU)."""
    torch.manual_seed(rows)
    sizes = {"n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    config = GPT2Config(vocab_size=rows, activation_function="gelu", **sizes)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder
