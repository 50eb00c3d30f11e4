"""Chips that programs are compiled for without being here, TPUs and GPUs: their published figures, and topologies."""

import dataclasses
import importlib
import importlib.util
import os
import re
from typing import Any

import jax

from ganstyle_jax.io.files import UserError, first_line


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What XLA's compiler asks of an NVIDIA GPU (its makers' tables of each architecture)."""

    capability: tuple[int, int]  # of CUDA
    cores: int  # streaming multiprocessors
    units: int  # of float32 in each
    threads: int  # at once in each
    clock: float  # GHz
    cache: int  # bytes of the second level
    shared: int  # bytes of shared memory in each core; a block gets 1 KiB less

    def target(self, chip: "Chip") -> str:
        """XLA's GpuTargetConfigProto, as text."""
        major, minor = self.capability
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
              shared_memory_per_core: {self.shared} threads_per_core_limit: {self.threads} core_count: {self.cores}
              fpus_per_core: {self.units} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
              block_dim_limit_z: 65535 memory_bandwidth: {round(chip.bandwidth)} l2_cache_size: {self.cache}
              clock_rate_ghz: {self.clock} device_memory_size: {round(chip.memory)}
              shared_memory_per_block_optin: {self.shared - 1024}
              cuda_compute_capability {{ major: {major} minor: {minor} }}
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
            }}
            platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{chip.kind}"
        """


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip's published figures: Google Cloud's documentation of each TPU, NVIDIA's data sheet of each GPU."""

    kind: str  # as JAX calls the device
    flops: float  # a second, of bfloat16 convolutions and products; on TPUs of float32's too, by default
    memory: float  # bytes
    bandwidth: float  # bytes of memory a second
    links: float  # bytes a second to other chips, over all links; of a GPU to those of its host, one way
    flops32: float = 0.0  # as `flops`, of float32, which GPUs round to TF32 by default; 0: as `flops`
    scalar: float = 0.0  # operations a second on single numbers; 0: not known
    network: float = 0.0  # bytes a second of a GPU to other hosts, one way
    gpu: Gpu | None = None


def _gpu(kind: str, peak: tuple[float, float], memory: float, bandwidth: float, links: float, gpu: Gpu) -> Chip:
    """peak: TFLOP/s of bfloat16 and of TF32, without sparsity. One network card of 400 Gbit/s for each GPU."""
    scalar = 2e9 * gpu.cores * gpu.units * gpu.clock
    return Chip(kind, peak[0] * 1e12, memory, bandwidth, links, peak[1] * 1e12, scalar, 50e9, gpu)


TPUS = {
    "v4": Chip("TPU v4", 275e12, 32 * 2**30, 1228e9, 2400e9 / 8),
    "v5e": Chip("TPU v5 lite", 197e12, 16 * 2**30, 819e9, 1600e9 / 8),
    "v5p": Chip("TPU v5", 459e12, 95 * 2**30, 2765e9, 4800e9 / 8),
    "v6e": Chip("TPU v6 lite", 918e12, 32 * 2**30, 1640e9, 3584e9 / 8),
}
GPUS = {
    "a100": _gpu(
        "NVIDIA A100 80 GB", (312, 156), 85.1e9, 2039e9, 300e9,
        Gpu((8, 0), 108, 64, 2048, 1.41, 40 * 2**20, 167936),
    ),
    "l40s": _gpu(
        "NVIDIA L40S", (362, 183), 47.7e9, 864e9, 32e9, Gpu((8, 9), 142, 128, 1536, 2.52, 96 * 2**20, 102400)
    ),
    "h100": _gpu(
        "NVIDIA H100 SXM", (989, 494.5), 84.9e9, 3352e9, 450e9,
        Gpu((9, 0), 132, 128, 2048, 1.98, 50 * 2**20, 233472),
    ),
    "h200": _gpu(
        "NVIDIA H200", (989, 494.5), 151.4e9, 4800e9, 450e9, Gpu((9, 0), 132, 128, 2048, 1.98, 50 * 2**20, 233472)
    ),
    "b200": _gpu(
        "NVIDIA B200", (2250, 1125), 191.5e9, 7672e9, 900e9,
        Gpu((10, 0), 148, 128, 2048, 1.965, 126 * 2**20, 233472),
    ),
}  # fmt: skip
CHIPS = TPUS | GPUS
EXAMPLES = "v5e:2x4 or v4:2x2x1 for TPUs, h200:1, h200:8 or h200:2x8 (hosts x GPUs) for GPUs"


def topology_devices(name: str) -> tuple[Chip, list[Any]]:
    """The chips of a topology such as "v5e:2x4" or "h200:8". UserError for none such, or without their compiler."""
    version, _, shape = name.partition(":")
    if version not in CHIPS or not re.fullmatch(r"\d+(x\d+)?" if version in GPUS else r"\d+(x\d+){1,2}", shape):
        raise UserError(f"--topology must be such as {EXAMPLES}, of {', '.join(CHIPS)}, got {name!r}")
    chip = CHIPS[version]
    return chip, (_gpus(name, chip, shape) if chip.gpu else _tpus(name, version))


def _tpus(name: str, version: str) -> list[Any]:
    # libtpu would ask the network, for minutes, what machine this is.
    os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{version}-8")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several may compile: there is no chip to fight for
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except Exception as error:  # of many types: libtpu is missing, is too old, or knows no such slice
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(
                "the TPU compiler is not installed: pip install -e '.[tpu-plan]', which needs no TPU"
            ) from error
        raise UserError(f"there is no topology {name}: {first_line(error)}") from error


def _gpus(name: str, chip: Chip, shape: str) -> list[Any]:
    plugin = "jax_plugins.xla_cuda13"
    if importlib.util.find_spec("jax_plugins") is None or importlib.util.find_spec(plugin) is None:
        raise UserError("the GPU compiler is not installed: pip install -e '.[gpu-plan]', which needs no GPU")
    hosts, _, gpus = shape.rpartition("x")
    if min(int(hosts or 1), int(gpus)) < 1:
        raise UserError(f"there is no topology {name}: it has no GPU")
    from jax.experimental import topologies

    assert chip.gpu is not None
    version, described = name.partition(":")[0], chip.gpu.target(chip)
    jax.devices()  # finds the plugin, which does without NVIDIA's libraries where JAX_PLATFORMS=cpu

    def described_devices() -> list[Any]:
        return topologies.get_topology_desc(
            version, "cuda", topology=f"1x{hosts or 1}x{gpus}", target_config=described
        ).devices

    try:
        try:
            return described_devices()
        except NotImplementedError:  # elsewhere it must be told so
            os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
            importlib.import_module(plugin).initialize()
            return described_devices()
    except Exception as error:  # of many types: the plugin belongs to another version of JAX, or knows no such GPU
        raise UserError(f"XLA's GPU compiler cannot plan for {name}: {first_line(error)}") from error
