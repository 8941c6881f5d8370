"""The verb convert. Heavy imports wait until it really runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from bridge.commands.options import Settings, show_agreement, with_weights
from jaxmodels.cli import emit, in_bytes, merge_repeated, parse, say, show
from jaxmodels.errors import DONE
from jaxmodels.runtime.platform import silence_storage


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
    """For every model: safetensors (a model directory that PyTorch and JAX load), orbax (an Orbax
    checkpoint with the names of the authors' code). For all but wigip and bitgen_stage1: onnx
    (graphs for onnxruntime). wikigpt: gpt2 (a GPT-2 folder of transformers), nanogpt (nanoGPT's
    out_dir, DST/ckpt.pt), gguf (DST/model.gguf for llama.cpp), peft (only the adapters of a run
    with --lora). bwetaf: bwetaf (its own folder). wigip: wigip-zip (its own DST/step_N.zip).
    bitgen: packed (a model directory with ternary weights in 2 bits, image tower and embeddings
    in 8). bitgen_stage1: bitgen (its own DST/checkpoint-N.pt). dinov2: dinov2 (a DINOv2 folder
    of transformers), dinov2-pth (DST/dinov2_pretrain.pth for the published code)."""
    arch: str | None = None
    """The architecture, if the files do not say it."""
    set: Settings = ()
    """Settings that the files lack, such as heads=4."""
    vocab: Path | None = None
    """The tokeniser, if it is not beside the source: characters.json, tokenizer.json, or a JSON
    list of the characters in the order of their ids (wigip; unknown ones become id 0)."""
    dtype: str = "keep"
    """keep, float32, bfloat16 or float16; with --to gguf also q8_0, with --to onnx int8."""
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
    outputs in JAX and PyTorch (of onnx: onnxruntime)."""
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


def convert_main(argv: list[str]) -> int:
    """Runs `jaxmodels convert`."""
    options = parse(
        Convert, merge_repeated(merge_repeated(argv, "--set"), "--keep-fp32"), "convert"
    )
    silence_storage()
    options = with_weights(options)  # shown again for `verify`
    import bridge
    from bridge.checkpoint.config import parse_settings

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


def _show_plan(report: Any) -> None:
    for row in report.plan:
        show(
            f"{row['from']} -> {row['to']}  {row['op']}  {row['dtype']} {tuple(row['shape'])}"
            f"  {in_bytes(row['bytes'])}  {row['shard']}".rstrip()
        )
    show(
        f"{report.tensors} tensors, {report.parameters:,} parameters; needs "
        f"{in_bytes(report.disk_needed)} of disk ({in_bytes(report.disk_free)} are free) and about "
        f"{in_bytes(report.memory_needed)} of memory; nothing was written"
    )


def _show_conversion(report: Any, settings: tuple[str, ...]) -> None:
    from bridge.formats import target

    show(
        f"{report.output}: {report.arch}, {report.tensors} tensors, "
        f"{report.parameters:,} parameters, {in_bytes(report.bytes)}; verified: {report.verified}"
    )
    if report.max_rounding_error:
        at = report.max_rounding_error_at
        show(f"largest rounding error: {report.max_rounding_error:.3g}, in {at}")
    show_agreement(report)
    if report.vocab_present is False:
        show("no vocabulary: token ids work, text does not; give it with --vocab FILE")
    if target(report.format).run:  # not read back
        return
    flags = "".join(f" --set {setting}" for setting in settings)
    show(f"next: jaxmodels verify {report.output} --against {report.source}{flags}")
