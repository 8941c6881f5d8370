"""NVIDIA GPUs: peak rates, memory, links; and the form in which XLA takes their description.

Sources of rates, memory and links: NVIDIA's data sheets (A100 80GB SXM, H100, H200, DGX B200) and
user guides of the DGX A100, H100 and B200 (network cards), read in November 2026. What only the
compiler needs to know is in openxla/xla, `xla/backends/gpu/target_config/specs`.
"""

import difflib
import os
import re
from dataclasses import dataclass
from typing import NamedTuple

from jaxmodels.errors import USAGE, Problem

MOST_DEVICES = 8
"""GPUs of a host: those of an HGX board, all joined by NVLink."""
MOST_HOSTS = 1024


@dataclass(frozen=True)
class Gpu:
    """A GPU in its SXM form."""

    kind: str
    """JAX's `device_kind`."""
    flops: float
    """Peak bfloat16 operations a second, without sparsity."""
    bandwidth: float
    """Bytes a second between memory and chip."""
    nvlink: float
    """Bytes a second that it sends to the GPUs of its host."""
    nic: float
    """Bytes a second that it sends to other hosts: one network card for each GPU."""
    memory: int
    """Bytes of memory that CUDA reports."""
    capability: tuple[int, int]
    """CUDA's compute capability."""
    estimated: bool
    """Whether XLA has measured tables for it, and so expects a time of each operation."""
    source: str
    cores: int
    fpus: int
    """Of a core."""
    clock: float
    """GHz."""
    cache: int
    """Bytes of the L2 cache."""
    shared: int
    """Bytes of a core's shared memory; a block can use all but a KiB of it."""
    links: int
    """NVLinks."""

    @property
    def usable(self) -> int:
        """Bytes that JAX's allocator takes: three quarters, unless the environment sets a share."""
        names = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
        share = next((os.environ[name] for name in names if os.environ.get(name)), "0.75")
        try:
            return int(float(share) * self.memory)
        except ValueError:
            raise Problem(
                f"the share of a GPU's memory is not a number: {share!r}",
                where=" or ".join(names),
                fix="set it to a number such as 0.75, or unset it",
                exit_code=USAGE,
            ) from None

    @property
    def description(self) -> str:
        """XLA's `GpuTargetConfigProto`, as text."""
        major, minor = self.capability
        # Programs may use what is special to this generation, as on the GPU itself.
        special = "ACCELERATED_FEATURES" if major >= 9 else "NONE"
        return f"""
gpu_device_info {{
  name: "{self.kind}"
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {special} }}
  core_count: {self.cores} fpus_per_core: {self.fpus} clock_rate_ghz: {self.clock}
  device_memory_size: {self.memory} memory_bandwidth: {self.bandwidth:.0f}
  l2_cache_size: {self.cache}
  shared_memory_per_core: {self.shared} shared_memory_per_block_optin: {self.shared - 1024}
  shared_memory_per_block: 49152
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  threads_per_core_limit: 2048 threads_per_block_limit: 1024 threads_per_warp: 32
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  device_interconnect_info {{ active_links: {self.links} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{self.kind}"
"""


_A100 = ((8, 0), False, "data sheet of the A100, guide of the DGX A100", 108, 64, 1.41)
_H100 = ((9, 0), True, "data sheet of the H100, guide of the DGX H100", 132, 128, 1.98)
_H200 = ((9, 0), True, "data sheet of the H200, guide of the DGX H200", 132, 128, 1.98)
_B200 = ((10, 0), True, "data sheet and guide of the DGX B200", 148, 128, 1.965)
_HOPPER = (52_428_800, 233_472, 18)

GPUS = {
    "a100-40g": Gpu(
        *("NVIDIA A100-SXM4-40GB", 312e12, 1555e9, 300e9, 25e9, 42_331_013_120, *_A100),
        *(41_943_040, 167_936, 12),
    ),
    "a100-80g": Gpu(
        *("NVIDIA A100-SXM4-80GB", 312e12, 2039e9, 300e9, 25e9, 85_100_068_864, *_A100),
        *(41_943_040, 167_936, 12),
    ),
    "h100": Gpu(
        *("NVIDIA H100 80GB HBM3", 989e12, 3350e9, 450e9, 50e9, 84_942_979_072, *_H100),
        *_HOPPER,
    ),
    "h200": Gpu(
        *("NVIDIA H200", 989e12, 4800e9, 450e9, 50e9, 151_397_597_184, *_H200),
        *_HOPPER,
    ),
    "b200": Gpu(
        *("NVIDIA B200", 2250e12, 8000e9, 900e9, 50e9, 191_514_411_008, *_B200),
        *(132_644_864, 233_472, 18),
    ),
}


class Hosts(NamedTuple):
    """Hosts with GPUs of one kind, all alike."""

    name: str
    gpu: Gpu
    hosts: int
    each: int
    """GPUs of a host."""


def is_gpu(name: str) -> bool:
    """Whether this is meant to name GPUs: a GPU of the table or a near name."""
    return _gpu(name) in GPUS or bool(_near(_gpu(name)))


def hosts(name: str) -> Hosts:
    """What "h100:8" (GPUs of one host) or "h100:2x8" (hosts × GPUs of each) names.

    Raises:
        Problem: (usage) there is no such GPU, or no host has as many; near names are suggested.
    """
    gpu, _, shape = name.lower().partition(":")
    if gpu not in GPUS:
        near = _near(gpu)
        raise Problem(
            f"unknown GPU: {gpu!r}",
            why=f"known GPUs: {', '.join(GPUS)}",
            fix=f"did you mean {' or '.join(f'{one}:{shape or 8}' for one in near)}?",
            exit_code=USAGE,
        )
    sizes = shape.split("x")
    if len(sizes) > 2 or not all(re.fullmatch("[0-9]{1,6}", size) and int(size) for size in sizes):
        raise Problem(
            f"unknown topology: {name!r}",
            why=f"the form is {gpu}:GPUS, or {gpu}:HOSTSxGPUS with the number of GPUs in each host",
            fix=f"for example --topology {gpu}:8 or --topology {gpu}:2x8",
            exit_code=USAGE,
        )
    count, each = (1, int(sizes[0])) if len(sizes) == 1 else map(int, sizes)
    if each > MOST_DEVICES or count > MOST_HOSTS:
        fix = f"at most {gpu}:{MOST_HOSTS}x{MOST_DEVICES} can be planned for"
        if each > MOST_DEVICES and count * each <= MOST_DEVICES * MOST_HOSTS:
            full = -(-count * each // MOST_DEVICES)
            fix = f"for {full} hosts: --topology {gpu}:{full}x{MOST_DEVICES}"
        raise Problem(
            f"{name}: a host has at most {MOST_DEVICES} GPUs, joined by NVLink"
            if each > MOST_DEVICES
            else f"{name}: too many hosts",
            fix=fix,
            exit_code=USAGE,
        )
    return Hosts(f"{gpu}:{each}" if count == 1 else f"{gpu}:{count}x{each}", GPUS[gpu], count, each)


def _gpu(name: str) -> str:
    return name.lower().partition(":")[0]


def _near(gpu: str) -> list[str]:
    """Known GPUs that a name may mean: "a100", "h100-80gb", "dgx-h100", "h1000"."""
    models = {name.partition("-")[0] for name in GPUS}
    meant = [name for name in GPUS if any(m in gpu and name.startswith(m) for m in models)]
    close = difflib.get_close_matches(gpu, [*GPUS, *models], n=2, cutoff=0.65)
    return meant or [name for name in GPUS if any(name.startswith(one) for one in close)]
