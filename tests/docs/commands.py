"""Every command of README.md and docs/: what it prints, and what is run if it is too large."""

from typing import NamedTuple


class Shown(NamedTuple):
    """What a command shows."""

    pattern: str
    """A regular expression that is found in its output."""
    smaller: str = ""
    """What is run in its place, if it takes long or needs much memory; {longer} is a few more steps
    than the run has."""


_FEW = "--steps 4 --eval-every 10 --save-every 10 --sample-every 0"
SMALL = f"{_FEW} --batch 4"
_DONE = r"done: step 4 of 4"
_BITGEN = (
    f"{_FEW} --batch 8 --valid-fraction 0.3 --optim.name adamw --model.dim 16 --model.heads 2 "
    "--model.hidden 16 --model.layers 1 --model.decoder-layers 1 --model.queue 32 --model.slots 4 "
    "--model.context 24 --model.image-size 28 --model.dinov2.dim 16 --model.dinov2.layers 1 "
    "--model.dinov2.heads 2 --model.dinov2.hidden 16 --model.dinov2.image-size 28"
)
_LOSSES = (
    r"^loss \d\.\d{4} nats per token, perplexity \d+\.\d{3}, \d\.\d{4} bits per token "
    r"and \d\.\d{4} per character, over [\d,]+ tokens$"
)

FIRST_HOUR = {
    "jaxmodels train charlm:notebook --batch 64 --steps 2000 --out runs/first": Shown(
        r"step 1/\d+  loss \d\.\d{4}  compiled\n(.*\n)*continue:  jaxmodels train --out runs/first",
        "jaxmodels train charlm:tiny --batch 4 --steps 1000000 --save-every 1000000 "
        "--eval-every 1000000 --sample-every 0 --out runs/first",
    ),
    "jaxmodels train --out runs/first": Shown(
        r"resumed from checkpoint (\d+)\n(.*\n)*done: step (\d+) of \3",
        "jaxmodels train --out runs/first --steps {longer}",
    ),
    'jaxmodels generate runs/first --prompt "The value of"': Shown(r"^The value of."),
    "jaxmodels convert runs/first first-pytorch --verify logits": Shown(
        r"^first-pytorch: charlm.* verified: logits\n"
    ),
}
TRAINING = {
    "jaxmodels train charlm:notebook --data text:books/ --out runs/books --max-hours 8.5": Shown(
        rf"step 1/4  loss \d\.\d{{4}}  compiled\n(.*\n)*{_DONE}",
        f"jaxmodels train charlm:tiny --data text:books/ --out runs/books --max-hours 8.5 {SMALL}",
    ),
    "jaxmodels train --out runs/books": Shown(rf"resumed from checkpoint 4\n(.*\n)*{_DONE}"),
    "jaxmodels train charlm:notebook --lr 0.003 --model.layers 4 --print-config": Shown(
        r'"layers": 4(.*\n)*.*"peak_lr": 0.003'
    ),
    "jaxmodels train --out runs/books --steps 3200": Shown(
        r"the learning rate(.*\n)*done: step 8 of 8", "jaxmodels train --out runs/books --steps 8"
    ),
    "jaxmodels report runs/books": Shown(r"runs/books/report\.html"),
}
DATA = {
    "jaxmodels data tokenizer --data jsonl:web.jsonl#body --kind bpe --vocab 8000 --out web.json": (
        Shown(r"bytes a token on [\d,]+ bytes that were held out; GPT-2's")
    ),
    'jaxmodels train charlm:notebook --data "mix:3*text:books/,1*jsonl:web.jsonl#body" '
    "--out runs/mixed": Shown(
        _DONE,
        'jaxmodels train charlm:tiny --data "mix:3*text:books/,1*jsonl:web.jsonl#body" '
        f"--out runs/mixed {SMALL}",
    ),
    "jaxmodels eval runs/mixed --data text:books/": Shown(_LOSSES),
    "jaxmodels data prepare jsonl:web.jsonl#body tokens/web --tokenizer gpt2": Shown(
        r"tokens/web",
        "jaxmodels data prepare jsonl:web.jsonl#body tokens/web --tokenizer gpt2 --workers 1",
    ),
    "jaxmodels data inspect tokens/web": Shown(r"50,257"),
    "jaxmodels train wikigpt:base --data bin:tokens/web --out runs/web": Shown(
        _DONE, f"jaxmodels train charlm:tiny --data bin:tokens/web --out runs/web {SMALL}"
    ),
}
CHECKPOINTS = {
    "jaxmodels inspect runs/first": Shown(r"parameters: +\d"),
    "jaxmodels convert runs/first first-model --verify logits": Shown(r"verified: logits\n"),
    "jaxmodels verify first-model --against runs/first": Shown(
        r"largest logit difference.*\n(.*\n)*tensors equal: (\d+) of \2\nverified\n"
    ),
    "jaxmodels diff runs/first first-model": Shown(r"equal"),
    "jaxmodels convert out/ckpt.pt gpt2 --to gpt2 --verify logits": Shown(r"verified: logits\n"),
    "jaxmodels convert gpt2 again --to nanogpt": Shown(r"^again: wikigpt, .* verified: digest"),
    "jaxmodels convert gpt2 gguf --to gguf --dtype q8_0": Shown(
        r"^gguf.*: wikigpt, .* verified: digest"
    ),
    "jaxmodels convert dinov2-small tower --verify logits": Shown(
        r"^tower: dinov2.* verified: logits"
    ),
    "jaxmodels convert tower back --to dinov2": Shown(r"^back: dinov2, .* verified: digest"),
    "jaxmodels convert step_7.zip wigip --verify roundtrip": Shown(r"verified: roundtrip\n"),
    "jaxmodels convert first-model orbax --to orbax": Shown(r"^orbax: charlm.* verified: digest\n"),
}
FINE_TUNING = {
    "jaxmodels train --init gpt2 --lora rank=8,alpha=16 --data text:books --out runs/tuned": Shown(
        r"done: step 2 of 2",
        "jaxmodels train wikigpt:tiny --init out/ckpt.pt --lora rank=8,alpha=16 --data text:books "
        f"--tokenizer letters.json --out runs/tuned {SMALL} --steps 2 --batch 2",
    ),
    "jaxmodels convert runs/tuned tuned": Shown(r"^tuned: wikigpt, .* verified: digest"),
    "jaxmodels convert runs/tuned adapters --to peft": Shown(
        r"^adapters: wikigpt, .* verified: digest"
    ),
}
ACCELERATORS = {
    "jaxmodels plan charlm:base --topology v5e:1x1 --batch 8": Shown(
        r"GiB", "jaxmodels plan charlm:tiny --topology v5e:1x1 --batch 8"
    ),
}
VISION = {
    "jaxmodels train bitgen:tiny --data shapes --out runs/scenes": Shown(
        _DONE,
        "jaxmodels train bitgen:tiny --data images:photos --tokenizer words --out runs/scenes "
        f"{_BITGEN}",
    ),
    "jaxmodels eval runs/scenes": Shown(r"R@1 .*\n.*%"),
    "jaxmodels train --init runs/scenes --new-words --data questions:shapes "
    "--out runs/asked": Shown(
        rf"new words: the vocabulary has \d+ tokens\n(.*\n)*{_DONE}",
        f"jaxmodels train --init runs/scenes --new-words --data questions:vqa --out runs/asked "
        f"{_FEW} --batch 8 --optim.name adamw",
    ),
    "jaxmodels eval runs/asked --questions shapes": Shown(
        r"180 questions about 20 images.*\nall .*%.*\ncolour .*%",
        "jaxmodels eval runs/asked --questions vqa/v2_OpenEnded_mscoco_val2014_questions.json",
    ),
    'jaxmodels generate runs/asked --image photos/1.png --prompt "question: what colour is the '
    'circle answer:"': Shown(r"question: what colour is the circle answer:"),
    "jaxmodels train --init runs/scenes --new-words --data questions:vqa --out runs/vqa": Shown(
        _DONE,
        f"jaxmodels train --init runs/scenes --new-words --data questions:vqa --out runs/vqa "
        f"{_FEW} --batch 8 --optim.name adamw",
    ),
    "jaxmodels eval runs/vqa --questions vqa/v2_OpenEnded_mscoco_val2014_questions.json "
    "--table answers.md": Shown(r"180 questions about 20 images"),
    "jaxmodels data inspect images:photos": Shown(r"images +40\n"),
    "jaxmodels eval runs/scenes --data images:photos": Shown(r"R@1 .*\n.*%"),
    "jaxmodels generate runs/scenes --image photos/1.png": Shown(r"using checkpoint 4\n.*\w"),
    "jaxmodels eval runs/scenes --image photos/1.png "
    '--caption "a red circle" "a blue square"': Shown(r"a blue square"),
    "jaxmodels convert runs/scenes album": Shown(r"^album: bitgen.* verified: digest\n"),
    'jaxmodels memory write album --image photos/1.png --caption "a red circle on the left" '
    "--data images:photos": Shown(r"measured on 40 pairs"),
    'jaxmodels memory read album --text "a red circle on the left"': Shown(r"caption of .*1.png"),
    "jaxmodels memory list album": Shown(r"a red circle on the left"),
    "jaxmodels memory forget album 1": Shown(r"."),
    "jaxmodels convert runs/scenes small --to packed": Shown(r"^small: bitgen.* verified: digest"),
}
EVALUATION = {
    "jaxmodels eval runs/first --tasks questions.jsonl": Shown(r"of 1 question right"),
    "jaxmodels eval runs/first": Shown(_LOSSES, "jaxmodels eval runs/first --max-batches 2"),
    "jaxmodels eval runs/first --data text:other.txt --valid-fraction 1": Shown(_LOSSES),
    'jaxmodels generate runs/first --prompt "The value of" --temperature 0.8 --top-p 0.95 '
    "--num-samples 3": Shown(
        r"(^The value of(.*\n)+){3}",
        'jaxmodels generate runs/first --prompt "The value of" --temperature 0.8 --top-p 0.95 '
        "--num-samples 3 --max-new-tokens 16",
    ),
}
_CHARACTERS = "--data text:data/shakespeare_char/input.txt"
NANOGPT = {
    "jaxmodels inspect out-shakespeare-char": Shown(r"format: +nanogpt\n(.*\n)*vocabulary: +yes"),
    'jaxmodels generate out-shakespeare-char --prompt "ROMEO:" --num-samples 2': Shown(
        r"^ROMEO:.",
        'jaxmodels generate out-shakespeare-char --prompt "ROMEO:" --num-samples 2 '
        "--max-new-tokens 16",
    ),
    "jaxmodels train wikigpt:base --init out-shakespeare-char --init-optimizer "
    f"{_CHARACTERS} --valid-fraction 0.1 "
    "--batch-size 64 --accum 1 --max-iters 1000 --learning-rate 1e-4 --out runs/more": Shown(
        _DONE,
        f"jaxmodels train wikigpt:base --init out-shakespeare-char --init-optimizer {_CHARACTERS} "
        "--valid-fraction 0.1 --batch-size 4 --accum 1 --max-iters 4 --learning-rate 1e-4 "
        "--out runs/more",
    ),
    f"jaxmodels train wikigpt:base {_CHARACTERS} --tokenizer bare-chars --min-freq 1 "
    "--valid-fraction 0.1 --n-layer 6 --n-head 6 --n-embd 384 "
    "--block-size 256 --dropout 0.2 --model.no-bias --batch-size 64 --accum 1 --max-iters 5000 "
    "--learning-rate 1e-3 --min-lr 1e-4 --warmup-iters 100 --beta2 0.99 --weight-decay 0.1 "
    "--grad-clip 1.0 --eval-interval 250 --eval-iters 200 --out runs/chars": Shown(
        _DONE,
        f"jaxmodels train wikigpt:base {_CHARACTERS} --tokenizer bare-chars --min-freq 1 "
        "--valid-fraction 0.1 --n-layer 1 --n-head 2 --n-embd 32 --model.hidden 128 "
        "--block-size 16 --dropout 0.2 --model.no-bias --batch-size 4 --accum 1 --max-iters 4 "
        "--learning-rate 1e-3 --min-lr 1e-4 --warmup-iters 1 --beta2 0.99 --weight-decay 0.1 "
        "--grad-clip 1.0 --eval-interval 250 --eval-iters 2 --out runs/chars",
    ),
    "jaxmodels convert runs/more back --to nanogpt --optimizer": Shown(
        r"meta\.pkl(.*\n)*back: wikigpt, .* verified: digest"
    ),
    "jaxmodels convert runs/more more-gpt2 --to gpt2 --verify logits": Shown(
        r"^more-gpt2: wikigpt, .* verified: logits"
    ),
}

COMMANDS = (
    FIRST_HOUR
    | TRAINING
    | FINE_TUNING
    | DATA
    | CHECKPOINTS
    | ACCELERATORS
    | VISION
    | EVALUATION
    | NANOGPT
)

MAKE = {"make demo": "bash examples/demo.sh", "make test": "python -m pytest"}
"""They set up an environment over the network: the commands they would run are looked at."""
