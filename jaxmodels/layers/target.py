"""What the program that is being traced will run on.

A layer has several forms where platforms differ: `heads`, `kernels`, `linear`, `norm`, `losses`,
`products`, `rotary`, `tiles`. `tests/jaxmodels/test_forms.py` runs a TPU's forms on a CPU and
`test_cycles.py` holds their estimated cycles to plain JAX.
"""

import jax


def platform() -> str:
    """`cpu`, `tpu` or `gpu`: what the ambient mesh is made of, else JAX's default device.

    Some layers have another form for each: layouts and sums that suit a CPU's caches cost a TPU
    most of its time, and the other way round. Every form is right on every platform. The mesh is
    the one that the train step sets (`runtime/step.py`), whose devices need not exist.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else str(device.platform)


def compute_capability() -> float | None:
    """CUDA's compute capability of the GPU that the program will run on.

    None if that is no GPU of this machine, but one that is described (`runtime/planning/gpu.py`).
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    here = (
        float(gpu.compute_capability)
        for gpu in jax.local_devices()
        if gpu.platform == "gpu" and (device is None or device.device_kind == gpu.device_kind)
    )
    return min(here, default=None)
