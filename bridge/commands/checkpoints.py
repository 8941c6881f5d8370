"""The verbs convert, inspect, verify and diff. Heavy imports wait until a verb really runs."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from jaxmodels.cli import emit, merge_repeated, parse, say, show
from jaxmodels.errors import CORRUPT, DONE, UNSAFE, UNVERIFIED
from jaxmodels.runtime.platform import silence_storage

Settings = Annotated[tuple[str, ...], arg(metavar="NAME=VALUE")]


@dataclass(frozen=True)
class Convert:
    """Move a checkpoint between formats, one tensor at a time, and check what was written."""

    src: Positional[Annotated[Path, arg(metavar="SRC")]]
    """Model directory, safetensors file, Orbax folder, run directory or one of its checkpoints;
    GPT-2 or DINOv2 folder of transformers; nanoGPT's ckpt.pt or its folder; DINOv2's .pth; bwetaf
    folder; wigip's step_N.zip or a folder of them (the newest step is taken); GGUF file of GPT-2's
    architecture."""
    dst: Positional[Annotated[Path, arg(metavar="DST")]]
    """The folder to create."""
    to: str = "safetensors"
    """safetensors: a model directory that PyTorch and JAX load; orbax: an Orbax checkpoint with
    the names of the authors' code; for wikigpt also gpt2: a GPT-2 folder of transformers,
    nanogpt: nanoGPT's out_dir, DST/ckpt.pt, and gguf: DST/model.gguf for llama.cpp; for bwetaf
    also bwetaf: its own folder; for wigip also wigip-zip: its own DST/step_N.zip; for
    bitgen_stage1 also bitgen: its own DST/checkpoint-N.pt; for dinov2 also dinov2: a DINOv2
    folder of transformers, and dinov2-pth: DST/dinov2_pretrain.pth, which the published code
    loads."""
    arch: str | None = None
    """The architecture, if the files do not say it."""
    set: Settings = ()
    """Settings that the files lack, such as heads=4."""
    vocab: Path | None = None
    """The tokeniser, if it is not beside the source: characters.json, tokenizer.json, or a JSON
    list of the characters in the order of their ids (wigip; unknown ones become id 0)."""
    dtype: str = "keep"
    """keep, float32, bfloat16 or float16; with --to gguf also q8_0."""
    keep_fp32: Annotated[tuple[str, ...], arg(metavar="PATTERN")] = ()
    """With --dtype: more parameters that stay float32, such as "head/*" (paths as in `inspect
    --tensors`). Norms, gates, temperatures and ternary matrices always do, unless a pattern is
    none."""
    max_shard_size: str = "5GB"
    """Split the safetensors file above this size."""
    dry_run: bool = False
    """Print the whole plan and write nothing."""
    verify: Literal["none", "digest", "roundtrip", "logits"] = "digest"
    """digest: read back; roundtrip: and equal to the source bit for bit; logits: and the same
    outputs in JAX and PyTorch."""
    weights: Literal["ema", "raw"] | None = None
    """For a run trained with --ema-decay: ema, the averaged weights, or raw, the trained ones. By
    default ema; with --optimizer raw, which the moments belong to."""
    text: str | None = None
    """With --verify logits: compare outputs on this text too."""
    gradients: bool = False
    """With --verify logits: compare the gradient of every parameter too."""
    optimizer: bool = False
    """Also convert AdamW's moments: from a run, a nanoGPT, bwetaf or wigip checkpoint or a model
    directory that has them, to any target but orbax and gguf."""
    force: bool = False
    """Replace an earlier output."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Inspect:
    """Say what a checkpoint is and what is wrong with it. Executes nothing in it.

    Exit code 0: it can be read (see the problems); 3: it cannot, or is damaged, or its files
    contradict each other; 4: it asks to run code, and was refused.
    """

    path: Positional[Path]
    """Any file or folder."""
    tensors: bool = False
    """List every tensor."""
    arch: str | None = None
    """The architecture, if the files do not say it."""
    set: Settings = ()
    """Settings that the files lack, such as heads=4."""
    weights: Literal["ema", "raw"] | None = None
    """Of a run that keeps a running average of its weights: ema, the average, or raw, what it
    trains. By default raw, with a note that both are there."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Verify:
    """Check digests, and JAX against PyTorch; with --against, every tensor of the source too.

    Exit code 0: all is right; 8: something is not, and it is named.
    """

    path: Positional[Path]
    """Model directory or run directory."""
    against: Path | None = None
    """The source that it was converted from."""
    set: Settings = ()
    """Settings that the source (without --against, PATH) lacks, as given to `convert`."""
    weights: Literal["ema", "raw"] | None = None
    """Of a run that keeps a running average of its weights: ema, the average, or raw, what it
    trains. By default those that PATH was made from, or ema."""
    atol: float = 1e-4
    """Tolerance: largest difference of outputs, and largest relative difference of gradients."""
    text: str | None = None
    """Compare outputs on this text too."""
    gradients: bool = False
    """Compare the gradient of every parameter too."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Diff:
    """Compare two checkpoints of any format, tensor by tensor, under our names.

    Exit code 0: the same values; 8: they differ.
    """

    a: Positional[Path]
    """One checkpoint."""
    b: Positional[Path]
    """The other."""
    set: Settings = ()
    """What neither of them can say, such as heads=4."""
    weights: Literal["ema", "raw"] | None = None
    """Of a run that keeps a running average of its weights: ema, the average, or raw, what it
    trains. By default those that the other one was made from, or ema."""
    json: bool = False
    """Print one JSON object."""


def _with_weights(options: Any) -> Any:
    """Options whose `set` says what --weights does."""
    from bridge.checkpoint.averages import CHOICE

    if not options.weights:
        return options
    return replace(options, set=(*options.set, f"{CHOICE}={options.weights}"))


def convert_main(argv: list[str]) -> int:
    """Runs `jaxmodels convert`."""
    options = parse(
        Convert, merge_repeated(merge_repeated(argv, "--set"), "--keep-fp32"), "convert"
    )
    silence_storage()
    options = _with_weights(options)  # the words that are told to `verify` say them too
    import bridge
    from bridge.checkpoint.opening import parse_settings

    report = bridge.convert(
        options.src,
        options.dst,
        to=options.to,
        arch=options.arch,
        config=parse_settings(options.set),
        vocab=options.vocab,
        dtype=options.dtype,
        keep_fp32=options.keep_fp32,
        max_shard_size=options.max_shard_size,
        dry_run=options.dry_run,
        verify=options.verify,
        force=options.force,
        progress=True,
        optimizer=options.optimizer,
        text=options.text,
        gradients=options.gradients,
    )
    for note in report.notes:
        say(f"note: {note}")
    if options.json:
        emit(report)
    else:
        _show_plan(report) if options.dry_run else _show_conversion(report, options.set)
    return DONE


def inspect_main(argv: list[str]) -> int:
    """Runs `jaxmodels inspect`."""
    options = _with_weights(parse(Inspect, merge_repeated(argv, "--set"), "inspect"))
    silence_storage()
    import bridge
    from bridge.checkpoint.opening import parse_settings

    report = bridge.inspect(options.path, options.arch, parse_settings(options.set))
    if options.json:
        emit({k: v for k, v in report.items() if k != "listing" or options.tensors})
    else:
        _show_inspection(report, options.tensors)
    return UNSAFE if report.unsafe else CORRUPT if report.damaged else DONE


def verify_main(argv: list[str]) -> int:
    """Runs `jaxmodels verify`."""
    options = _with_weights(parse(Verify, merge_repeated(argv, "--set"), "verify"))
    silence_storage()
    import bridge
    from bridge.checkpoint.opening import parse_settings

    report = bridge.verify(
        options.path,
        options.against,
        options.atol,
        options.text,
        options.gradients,
        parse_settings(options.set),
    )
    if options.json:
        emit(report)
    else:
        digests = {True: "right", False: "wrong", None: "no manifest"}[report.digests_ok]
        show(f"digests: {digests}")
        _show_agreement(report)
        if options.against:
            show(f"tensors equal: {report.tensors_equal} of {report.tensors_compared}")
        for note in report.notes:
            show(f"note: {note}")
        for problem in report.problems:
            show(f"problem: {problem}")
        show("verified" if report.ok else "NOT verified")
    return DONE if report.ok else UNVERIFIED


def diff_main(argv: list[str]) -> int:
    """Runs `jaxmodels diff`."""
    options = _with_weights(parse(Diff, argv, "diff"))
    silence_storage()
    import bridge
    from bridge.checkpoint.opening import parse_settings

    report = bridge.diff(options.a, options.b, config=parse_settings(options.set))
    if options.json:
        emit(report)
    else:
        a, b = report.arch
        if a != b:
            show(f"different architectures: {a} | {b}")
        for field, (a, b) in report.config.items():
            show(f"config {field}: {a} | {b}")
        for path, row in report.tensors.items():
            if row["status"] != "equal":
                show(f"{path}: {', '.join(f'{key} {value}' for key, value in row.items())}")
        equal = sum(row["status"] == "equal" for row in report.tensors.values())
        if report.tensors:
            show(f"{equal} of {len(report.tensors)} tensors are equal")
    return DONE if report.same else UNVERIFIED


def _show_plan(report: Any) -> None:
    for row in report.plan:
        show(
            f"{row['from']} -> {row['to']}  {row['op']}  {row['dtype']} {tuple(row['shape'])}"
            f"  {row['bytes']:,} bytes  {row['shard']}".rstrip()
        )
    show(
        f"{report.tensors} tensors, {report.parameters:,} parameters; disk: "
        f"{report.disk_needed:,} bytes needed, {report.disk_free:,} free; memory: about "
        f"{report.memory_needed:,} bytes; nothing was written"
    )


def _show_conversion(report: Any, settings: tuple[str, ...]) -> None:
    show(
        f"{report.output}: {report.arch}, {report.tensors} tensors, "
        f"{report.parameters:,} parameters, {report.bytes:,} bytes; verified: {report.verified}"
    )
    if report.max_rounding_error:
        at = report.max_rounding_error_at
        show(f"largest rounding error: {report.max_rounding_error:.3g}, in {at}")
    _show_agreement(report)
    if report.vocab_present is False:
        show("no vocabulary: token ids work, text does not; give it with --vocab FILE")
    said = "".join(f" --set {setting}" for setting in settings)
    show(f"next: jaxmodels verify {report.output} --against {report.source}{said}")


def _show_agreement(report: Any) -> None:
    if report.max_abs_logit_diff is None:
        return
    show(f"largest logit difference, JAX against PyTorch: {report.max_abs_logit_diff:.3g}")
    if report.max_abs_logit_diff_on_text is not None:
        show(f"on the text: {report.max_abs_logit_diff_on_text:.3g}")
    show(f"the largest logit is the same at {report.argmax_agreement:.2%} of positions")
    if report.max_gradient_diff is not None:
        show(f"largest relative difference of gradients: {report.max_gradient_diff:.3g}")
    if report.max_abs_logit_diff_to_source is not None:
        largest, same = report.max_abs_logit_diff_to_source, report.argmax_agreement_with_source
        show(f"largest logit difference to the source: {largest:.3g}")
        show(f"the source's largest logit is the same at {same:.2%} of positions")


def _show_inspection(report: Any, tensors: bool) -> None:
    for key in ("format", "arch", "preset", "tensors", "parameters", "bytes", "dtypes"):
        value = report[key]
        if isinstance(value, dict):
            value = ", ".join(f"{count} {dtype}" for dtype, count in value.items())
        value = f"{value:,}" if isinstance(value, int) else value or "unknown"
        show(f"{key + ':':<12} {value}")
    show(f"{'vocabulary:':<12} {'yes' if report.vocab_present else 'no'}")
    show(f"{'optimiser:':<12} {'yes' if report.optimizer else 'no'}")
    if report.averaged:
        show(f"{'weights:':<12} trained (raw), and their running average (ema)")
    for field, value in report.config.items():
        show(f"  {field} = {value}{'  (assumed)' if field in report.assumed else ''}")
    for row in report.listing if tensors else []:
        cut = "  cut off" if row.get("cut_off") else ""
        show(f"  {row['name']}  {tuple(row['shape'])}  {row['dtype']}{cut}")
    for kind in ("notes", "problems"):
        for line in report[kind]:
            show(f"{kind[:-1]}: {line}")
