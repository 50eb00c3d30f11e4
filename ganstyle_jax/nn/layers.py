"""What two or more methods use, in one place: `from ganstyle_jax import layers`.

convolutions.py  convolutions and pooling that are fast on every platform
norm.py          BatchNorm and instance normalisation with PyTorch's conventions
devices.py       one program for one device and for many: means, batches and draws over an axis
averages.py      averages of weights over training
"""

from ganstyle_jax.nn.averages import ema
from ganstyle_jax.nn.convolutions import (
    backend,
    compiling_for,
    conv,
    double,
    grouped_conv,
    halve,
    max_pool,
    on_cpu,
    windows,
    winograd,
    winograd_kernel,
)
from ganstyle_jax.nn.devices import (
    axis_size,
    by_device,
    gathered,
    gathering,
    global_batch,
    global_draw,
    global_normal,
    local_part,
    pmean,
    sharing,
)
from ganstyle_jax.nn.norm import BatchNorm, instance_norm

__all__ = [
    "BatchNorm",
    "axis_size",
    "backend",
    "by_device",
    "compiling_for",
    "conv",
    "double",
    "ema",
    "gathered",
    "gathering",
    "global_batch",
    "global_draw",
    "global_normal",
    "grouped_conv",
    "halve",
    "instance_norm",
    "local_part",
    "max_pool",
    "on_cpu",
    "pmean",
    "sharing",
    "windows",
    "winograd",
    "winograd_kernel",
]
