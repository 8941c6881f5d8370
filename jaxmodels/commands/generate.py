"""`jaxmodels generate`: continues a prompt or captions an image; streams text as it is drawn."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from jaxmodels.architecture import ModelView
from jaxmodels.cli import emit, escape_control, merge_repeated, parse, say
from jaxmodels.errors import LARGEST_SEED, MISMATCH, USAGE, Problem, within


@dataclass(frozen=True)
class Generate:
    """Continue a prompt with the model in PATH: a run, a model directory, any checkpoint."""

    path: Positional[Path]
    """Run directory, checkpoint or model directory."""
    prompt: str | None = None
    """The text to continue; by default a newline, or nothing with --image."""
    image: Path | None = None
    """An image file to caption, for a vision-language model."""
    max_new_tokens: int = 300
    """Tokens (or characters) to add; with --image at most as many as fit the context."""
    temperature: float | None = None
    """Divides the logits; 0 always takes the most likely token. Default: 0.8; with --image 0."""
    top_k: int | None = None
    """Draw from the k most likely tokens."""
    top_p: float | None = None
    """Draw from the most likely tokens that together have this probability."""
    min_p: float | None = None
    """Draw from tokens at least this fraction as likely as the most likely one."""
    seed: int = 0
    """The same seed gives the same text."""
    num_samples: int = 1
    """Number of continuations to draw."""
    vocab: Path | None = None
    """characters.json, tokenizer.json or a JSON list of the characters in the order of their ids,
    for a checkpoint without a vocabulary."""
    set: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE")] = ()
    """Config values that the checkpoint lacks, such as heads=4."""
    weights: Literal["ema", "raw"] | None = None
    """For a run trained with --ema-decay: ema, the averaged weights (the default), or raw, the
    trained ones."""
    json: bool = False
    """Print one JSON object instead of the text."""

    def __post_init__(self) -> None:
        within("--temperature", self.temperature, 0)
        within("--top-k", self.top_k, 1)
        within("--top-p", self.top_p, 0, 1)
        within("--min-p", self.min_p, 0, 1)
        within("--num-samples", self.num_samples, 1)
        within("--max-new-tokens", self.max_new_tokens, 1)
        within("--seed", self.seed, 0, LARGEST_SEED)


def main(argv: list[str]) -> int:
    """Runs the command."""
    options = parse(Generate, merge_repeated(argv, "--set"), "generate")
    import numpy as np

    from jaxmodels.commands.open import open_model
    from jaxmodels.runtime import platform

    platform.prepare()
    model, tokenizer = open_model(options.path, options.vocab, options.set, options.weights)
    if tokenizer is None:
        raise Problem(
            "the checkpoint has no vocabulary, so text cannot be tokenised",
            where=str(options.path),
            fix="give its characters.json or tokenizer.json with --vocab FILE",
            exit_code=MISMATCH,
        )
    images = _image(options, model)
    prompt = options.prompt or ("\n" if images is None else "")
    usual = 0.8 if images is None else 0.0
    temperature = usual if options.temperature is None else options.temperature
    options = replace(options, prompt=prompt, temperature=temperature)
    ids = _encode(prompt, tokenizer, model) if prompt else np.zeros((1, 0), np.int32)
    result = _run(options, model, tokenizer, ids, images)
    if options.json:
        emit(result)
    elif speed := result["tokens_per_second"]:
        say(f"{speed:,.0f} tokens/s")
    return 0


def _image(options: Generate, model: Any) -> Any:
    """The image to caption, float32 [1, h, w, 3] in [0, 1]; None for a language model.

    Raises:
        Problem: (usage) model and --image do not go together; and as `read_images`.
    """
    import jaxmodels
    from jaxmodels.commands.eval_images import read_images
    from jaxmodels.runtime.answers import can_caption
    from jaxmodels.runtime.batches import takes_images, takes_text

    arch = jaxmodels.package_of(model).name
    what, fix = "", ""
    if takes_text(model.config):
        if options.image is not None:
            what, fix = f"{arch} does not caption images: it takes no images", "leave out --image"
            if takes_images(model.config):
                what = f"{arch} does not caption images: it completes them"
                fix = "compare images with texts: jaxmodels eval PATH --image FILE --caption TEXT"
    elif takes_images(model.config) and not can_caption(model):
        what = f"{arch} cannot write captions: its decoder reconstructs the text that it is given"
        fix = "compare images with texts: jaxmodels eval PATH --image FILE --caption TEXT"
    elif options.image is None:
        what, fix = f"{arch} captions images", "give one with --image FILE"
    if what:
        raise Problem(what, where=str(options.path), fix=fix, exit_code=USAGE)
    if options.image is None:
        return None
    return read_images((options.image,), model.config.image_size).astype("float32") / 255


def _encode(prompt: str, tokenizer: Any, model: Any) -> Any:
    """Token ids [1, t]; prints which parts are unknown, read as plain text, or not read at all."""
    from jaxmodels.commands.unknown import warn_unknown
    from jaxmodels.runtime.generate import prompt_tokens_read

    warn_unknown(prompt, tokenizer, "the prompt")
    end = tokenizer.end_of_text
    special = [*tokenizer.special_ids, *([] if end is None else [end])]
    if names := [name for i in special if (name := tokenizer.decode([i])) in prompt]:
        say(f"read as plain text, not as special tokens: {' '.join(names)}")
    ids = tokenizer.encode(prompt)[None]
    if (read := prompt_tokens_read(model, ids.shape[1])) < ids.shape[1]:
        say(
            f"the prompt has {ids.shape[1]} tokens and the model's context {model.config.context}: "
            f"only its last {read} are read"
        )
    if note := ModelView(model).about_prompt(ids.shape[1]):
        say(note)
    return ids


def _run(options: Generate, model: Any, tokenizer: Any, ids: Any, images: Any) -> dict[str, Any]:
    """Draws all samples at once; streams a single one, prints several one by one."""
    import numpy as np

    from data_pipelines.tokenizers import decode_stream
    from jaxmodels.layers.sampling import Sampling
    from jaxmodels.runtime.answers import end_token
    from jaxmodels.runtime.generate import generate, truncate_at

    sampling = Sampling(options.temperature or None, options.top_k, options.top_p, options.min_p)
    end, count, seen = tokenizer.end_of_text, options.max_new_tokens, None
    if images is not None:
        end, count = end_token(tokenizer), min(count, _fitting(model, ids.shape[1]))
        seen = np.repeat(images, options.num_samples, axis=0)
    pieces: list[Any] = []
    times = [time.monotonic()]

    def drawn() -> Iterator[Any]:
        prompts = np.repeat(ids, options.num_samples, axis=0)
        banned = tuple(tokenizer.special_ids)
        for piece in generate(
            model, prompts, count, sampling, options.seed, banned, end=end, images=seen
        ):
            pieces.append(piece)
            times.append(time.monotonic())
            yield piece

    if options.num_samples == 1 and not options.json:
        print(escape_control(options.prompt or ""), end="", flush=True)
        new = (truncate_at(end, piece[0]) for piece in drawn())
        try:
            for text in decode_stream(tokenizer, new, after=ids[0].tolist()):
                print(escape_control(text), end="", flush=True)
        finally:
            print()
    else:
        for _ in drawn():
            pass
    rows = [truncate_at(end, row) for row in np.concatenate(pieces, axis=1)]
    texts = ("".join(decode_stream(tokenizer, [row], after=ids[0].tolist())) for row in rows)
    pairs = zip(texts, rows, strict=True)
    samples = [{"text": text, "tokens": row.tolist()} for text, row in pairs]
    if options.num_samples > 1 and not options.json:
        for index, sample in enumerate(samples, 1):
            print(f"--- {index}\n{escape_control((options.prompt or '') + sample['text'])}")
    return {"samples": samples, "tokens_per_second": _speed(pieces, times)}


def _fitting(model: Any, prompt: int) -> int:
    """Tokens that fit the model's context after a prompt of this length."""
    left: int = model.config.context - prompt
    if left < 1:
        raise Problem(
            f"a prompt of {prompt} tokens leaves no room to write",
            why=f"with an image, prompt and caption must fit {model.config.context} tokens",
            fix="give a shorter --prompt",
            exit_code=USAGE,
        )
    return left


def _speed(pieces: list[Any], times: list[float]) -> float | None:
    """Tokens a second after the first chunk, a lower bound; None with fewer than three chunks.

    The first chunk waits for compilation; the second may be done when the first is read.
    """
    tokens = sum(piece.size for piece in pieces[2:])
    return tokens / max(times[-1] - times[1], 1e-9) if tokens else None
