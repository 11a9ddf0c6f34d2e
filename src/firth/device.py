"""What the machine can do, and the process settings that make it do it.

Everything here is about speed on a device; nothing changes a result beyond the chosen precision.
"""

import contextlib
import ctypes
import functools
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from firth.errors import ConfigError, UnsupportedError

Precision = Literal["auto", "bfloat16", "float32"]

F = TypeVar("F", bound=Callable[..., Any])

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def prepare_process(threads: int | None = None) -> None:
    """Sets the thread count and keeps freed memory for reuse.

    glibc returns large freed blocks to the kernel at once, and a training step then pays a page
    fault for every page it touches again. Asking it to keep them is worth 1.3x to 1.4x on a CPU.
    """
    if sys.platform == "linux" and "LD_PRELOAD" not in os.environ:
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(_M_MMAP_MAX, 0)
            libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    if threads is not None:
        if threads < 1:
            raise ConfigError(f"threads is {threads}, expected at least 1")
        torch.set_num_threads(threads)


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" takes the first CUDA device, else the CPU.

    Raises:
        ConfigError: for another kind of device than CPU and CUDA.
        UnsupportedError: if the device is not there.
    """
    if not isinstance(name, str | torch.device):
        raise ConfigError(f"device is {name!r}, expected auto, cpu or cuda")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is unknown; expected auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is not supported; expected auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError(f"device {name!r}: no CUDA device was found; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UnsupportedError(f"device {name!r}: there are {torch.cuda.device_count()} of them")
    return device


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products run faster than float32 ones on `device`.

    Intel's processors have AVX512-BF16 in one of the two units that multiply float32: without tiles
    (AMX, which virtual machines often hide) it takes nearly twice as long there. AMD's have it in
    both.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        vectors = _cpu_has("_is_avx512_bf16_supported") and not _is_intel()
        return vectors or _cpu_has("_is_amx_tile_supported")
    return False


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of the matrix products: bfloat16 where it is fast, unless float32 is asked for.

    Raises:
        ConfigError: for another precision.
    """
    known = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    if precision == "auto":
        return torch.bfloat16 if fast_bfloat16(device) else torch.float32
    if precision not in known:
        raise ConfigError(f"precision is {precision!r}, expected auto, {' or '.join(known)}")
    return known[precision]


@contextlib.contextmanager
def fast_float32(device: torch.device) -> Iterator[None]:
    """Lets float32 products run at full speed.

    On CPUs that are not Intel's, "medium" precision routes float32 products to oneDNN, which
    computes them in float32 and up to twice as fast as the default library there. With tiles (AMX)
    "medium" would really compute in bfloat16, and Intel's the default library suits.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cpu" and not _is_intel() and not _cpu_has("_is_amx_tile_supported"):
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def computing(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Runs matrix products in `dtype` over float32 weights (autocast), float32 at full speed."""
    low, autocast = dtype != torch.float32, contextlib.nullcontext()
    if low or torch.is_autocast_enabled(device.type):  # else it costs, at every token of a text
        autocast = torch.autocast(device.type, dtype, enabled=low)
    with fast_float32(device), autocast:
        yield


def packs_float32(device: torch.device) -> bool:
    """Whether float32 weights can be laid out for MKL beforehand, and MKL is fast on `device`."""
    return device.type == "cpu" and _is_intel() and hasattr(torch.ops.mkl, "_mkl_linear")


def uncompiled(function: F) -> F:
    """Keeps a function as it is where `torch.compile` compiles what calls it."""
    return torch.compiler.disable(function)  # type: ignore[return-value]


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on `device`, without waiting for what a CUDA device still has to do."""
    if device.type == "cuda" and tensor.is_cpu:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def round_rows(count: int, device: torch.device) -> int:
    """The number of rows to compute for `count` of them: on the CPU rounded up to a coarse grain.

    That is to a multiple of 16 below 1,024 rows, and by at most 1/32 above.

    oneDNN compiles a kernel for every new shape of a matrix product, which takes ten times as long
    as the product and several megabytes that stay. Rounding leaves few shapes.
    """
    if device.type != "cpu" or count == 0:
        return count
    grain = 1 << max(4, count.bit_length() - 6)
    return -(-count // grain) * grain


def activation_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast computes in on `device`, or None where autocast is off."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


def peak_memory(device: torch.device) -> int:
    """Peak memory of the process (CPU) or of the tensors (CUDA), in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024


def _cpu_has(probe: str) -> bool:
    # Private names: probed, so that a torch without them only loses speed.
    return bool(getattr(torch.cpu, probe, lambda: False)())


@functools.cache
def _is_intel() -> bool:
    known = platform.processor()  # names the vendor on Windows
    with contextlib.suppress(OSError):
        known += Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    return "GenuineIntel" in known
