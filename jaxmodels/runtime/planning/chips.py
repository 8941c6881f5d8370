"""What `plan` compiles for: TPU chips in slices, with their rates, memory and links; GPUs in hosts.

Sources: Google Cloud's pages of each chip (docs.cloud.google.com/tpu/docs/v5e and so on), read in
November 2026, which give a chip's interconnect as the sum of both directions and all links; for
the links of v3 and v4, table 4 of Jouppi et al. 2023 (arXiv:2304.01433); for v2, Norrie et al. 2021
(IEEE Micro 41(2)). `usable` is the limit that libtpu's compiler names when a program exceeds it.
GPUs: `gpus`.
"""

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from jaxmodels.errors import USAGE, Problem
from jaxmodels.runtime.planning.gpus import GPUS, Gpu, hosts, is_gpu

GIB = 1 << 30


@dataclass(frozen=True)
class Chip:
    """One chip; a device is a JAX device, a chip or one of its two cores."""

    clock: float
    """The compiler's unit of time, a second's worth: cycles of a TPU (the peak rate over what its
    matrix units do in a cycle), nanoseconds on a GPU."""
    flops: float
    """Peak bfloat16 operations a second. XLA multiplies float32 in bfloat16 by default, too."""
    hbm: int
    """Bytes of memory by the data sheet."""
    bandwidth: float
    """Bytes a second between memory and chip."""
    link: float
    """Bytes a second that one link sends, in one direction."""
    devices: int
    """JAX devices on a chip. The cores of v4 and v5p act as one."""
    usable: int
    """Bytes of memory of one device that a program may fill."""
    source: str
    shapes: tuple[str, ...]
    """The slices on offer; of those with three dimensions, the smaller ones. None for GPUs."""


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
_DOCS = "docs.cloud.google.com/tpu/docs/"
_ISCA = "arXiv:2304.01433, table 4"

CHIPS = {
    "v2": Chip(
        *(0.7e9, 46e12, 16 * GIB, 700e9, 62e9, 2, int(7.48 * GIB)),
        "Norrie et al. 2021, IEEE Micro 41(2)",
        ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16"),
    ),
    "v3": Chip(
        *(0.94e9, 123e12, 32 * GIB, 900e9, 70e9, 2, int(15.48 * GIB)),
        f"{_DOCS}v3; links: {_ISCA}",
        ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16", "16x32", "32x32"),
    ),
    "v4": Chip(
        *(1.05e9, 275e12, 32 * GIB, 1200e9, 50e9, 1, int(30.75 * GIB)),
        f"{_DOCS}v4; links: {_ISCA}",
        _CUBES,
    ),
    "v5e": Chip(1.5e9, 197e12, 16 * GIB, 819e9, 50e9, 1, int(15.75 * GIB), f"{_DOCS}v5e", _FLAT),
    "v5p": Chip(
        1.75e9, 459e12, 95 * GIB, 2765e9, 100e9, 1, int(95.74 * GIB), f"{_DOCS}v5p", _CUBES
    ),
    "v6e": Chip(1.75e9, 918e12, 32 * GIB, 1638e9, 100e9, 1, int(31.25 * GIB), f"{_DOCS}v6e", _FLAT),
    "tpu7x": Chip(
        *(2.2e9, 2307e12, 192 * GIB, 7380e9, 100e9, 2, int(94.75 * GIB)),
        f"{_DOCS}tpu7x",
        _CUBES,
    ),
}


# Prefix of JAX's `device_kind` -> peak bfloat16 operations a second, without sparsity. L4 and H100
# PCIe: NVIDIA's data sheets, read in November 2026; an H100 is SXM unless its name says PCIe,
# which must come first.
_KINDS = {
    "TPU v2": CHIPS["v2"].flops / 2,
    "TPU v3": CHIPS["v3"].flops / 2,
    "TPU v4": CHIPS["v4"].flops,
    "TPU v5 lite": CHIPS["v5e"].flops,
    "TPU v5e": CHIPS["v5e"].flops,
    "TPU v5": CHIPS["v5p"].flops,
    "TPU v6": CHIPS["v6e"].flops,
    "TPU7x": CHIPS["tpu7x"].flops / 2,
    "NVIDIA A100": GPUS["a100-80g"].flops,
    "NVIDIA L4": 121e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": GPUS["h100"].flops,
    "NVIDIA H200": GPUS["h200"].flops,
    "NVIDIA B200": GPUS["b200"].flops,
}


def peak_flops(kind: str) -> float | None:
    """Peak bfloat16 operations a second of a device of this `device_kind`; None if unknown."""
    found = (name for name in _KINDS if re.match(rf"{re.escape(name)}(?![0-9])", kind))
    return _KINDS.get(next(found, ""))


@dataclass(frozen=True)
class Topology:
    """A slice of chips, such as v5e:4x4."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        """Number of chips."""
        return prod(self.shape)

    @property
    def devices(self) -> int:
        """Number of JAX devices."""
        return self.chips * self.chip.devices

    @property
    def flops(self) -> float:
        """Peak operations a second of one device."""
        return self.chip.flops / self.chip.devices

    @property
    def bandwidth(self) -> float:
        """Bytes a second between a device and its memory."""
        return self.chip.bandwidth / self.chip.devices

    @property
    def interconnect(self) -> float:
        """Bytes a second that a device can send to its neighbours, over all of its links.

        A chip has one link along a dimension of two chips, two along a longer one: an upper bound,
        since chips at the border of a slice without wrap-around have fewer.
        """
        links = sum(min(2, size - 1) for size in self.shape)
        return self.chip.link * links / self.chip.devices

    @property
    def sheet(self) -> dict[str, Any]:
        """A device's rates (operations and bytes a second), memory in bytes, and their source."""
        share = self.chip.devices
        return {
            "flops": self.flops,
            "bandwidth": self.bandwidth,
            "memory": self.chip.hbm // share,
            "link": self.chip.link / share,
            "source": self.chip.source,
        }

    def rate(self, members: Sequence[int]) -> float:
        """Bytes a second that a device can send to the others of these devices, by their indices.

        As in `interconnect`, a slice lets a device use all of its links.
        """
        return self.interconnect


@dataclass(frozen=True)
class GpuHosts(Topology):
    """Hosts with GPUs of one kind, such as h100:2x8; their shape is (hosts, GPUs of each)."""

    gpu: Gpu

    @property
    def interconnect(self) -> float:
        """Bytes a second that a device can send when all exchange with all; 0 for one device."""
        return self.rate(range(self.devices)) if self.devices > 1 else 0.0

    @property
    def sheet(self) -> dict[str, Any]:
        """As a TPU's, with NVLink and the network instead of a link."""
        rates = {name: rate for name, rate in super().sheet.items() if name != "link"}
        return rates | {"nvlink": self.gpu.nvlink, "network": self.gpu.nic}

    def rate(self, members: Sequence[int]) -> float:
        """Over NVLink, or between hosts over the network cards of the members in one host."""
        by_host = Counter(index // self.shape[1] for index in members)
        if len(by_host) < 2:
            return self.gpu.nvlink
        return min(self.gpu.nvlink, self.gpu.nic * min(by_host.values()))


def topology(name: str) -> Topology:
    """The slice of a name such as "v5e:4x4" or "v4:2x2x2"; GPUs of "h100:8" or "h100:2x8".

    Raises:
        Problem: (usage) there is no such chip or slice; near names are suggested.
    """
    chip, _, shape = name.lower().partition(":")
    if chip not in CHIPS and is_gpu(name):
        return _gpus(name)
    known = CHIPS.get(chip)
    if known and shape in known.shapes:
        return Topology(f"{chip}:{shape}", known, tuple(int(size) for size in shape.split("x")))
    names = [f"{chip}:{shape}" for chip, row in CHIPS.items() for shape in row.shapes]
    near = _by_count(chip) or difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    if known:
        near = [text for text in near if text.startswith(f"{chip}:")]
        near = near or [f"{chip}:{shape}" for shape in known.shapes[:3]]
    raise Problem(
        f"unknown topology: {name!r}" if name else "--topology is missing",
        why=f"slices of {chip}: {', '.join(known.shapes)}"
        if known
        else f"the form is CHIP:SHAPE, with one of the TPUs {', '.join(CHIPS)}, "
        f"or GPU:NUMBER, with one of the GPUs {', '.join(GPUS)}",
        fix=f"did you mean {' or '.join(near)}?"
        if near
        else "for example --topology v5e:4x4 or --topology h100:8",
        exit_code=USAGE,
    )


def _gpus(name: str) -> GpuHosts:
    named = hosts(name)
    gpu = named.gpu
    nanosecond = 1e9
    chip = Chip(
        *(nanosecond, gpu.flops, gpu.memory, gpu.bandwidth, gpu.nvlink, 1, gpu.usable, gpu.source),
        shapes=(),
    )
    return GpuHosts(named.name, chip, (named.hosts, named.each), gpu)


def _by_count(name: str) -> list[str]:
    """The slices meant by Google's accelerator types, such as v5litepod-16 or v4-8.

    These count cores for chips that have two, and chips for v5e, v6e and tpu7x.
    """
    chip, _, count = name.replace("v5litepod", "v5e").rpartition("-")
    if chip not in CHIPS or not count.isdigit():
        return []
    chips = int(count) if chip in ("v5e", "v6e", "tpu7x") else int(count) // 2
    shapes = CHIPS[chip].shapes
    return [f"{chip}:{x}" for x in shapes if prod(int(n) for n in x.split("x")) == chips]
