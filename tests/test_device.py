"""What the machine can do: which precision is fast, which library computes float32."""

import statistics
import time

import pytest
import torch

from firth import device
from firth.device import compute_dtype, computing, fast_bfloat16

CPU = torch.device("cpu")


def machine(patch: pytest.MonkeyPatch, *, vectors: bool, tiles: bool, intel: bool) -> None:
    """Makes the module believe in a processor."""
    has = {"_is_avx512_bf16_supported": vectors, "_is_amx_tile_supported": tiles}
    patch.setattr(device, "_cpu_has", has.__getitem__)
    patch.setattr(device, "_is_intel", lambda: intel)


@pytest.mark.parametrize(
    ("vectors", "tiles", "intel", "bfloat16", "library"),
    [
        (False, False, True, False, "highest"),  # AVX2
        (True, False, True, False, "highest"),  # tiles hidden by the virtual machine
        (True, True, True, True, "highest"),
        (False, False, False, False, "medium"),
        (True, False, False, True, "medium"),  # Zen 4
    ],
)
def test_what_is_fast_on_a_processor(
    vectors: bool, tiles: bool, intel: bool, bfloat16: bool, library: str, monkeypatch
):
    machine(monkeypatch, vectors=vectors, tiles=tiles, intel=intel)
    assert fast_bfloat16(CPU) == bfloat16
    assert compute_dtype("auto", CPU) == (torch.bfloat16 if bfloat16 else torch.float32)
    assert compute_dtype("bfloat16", CPU) == torch.bfloat16
    before = torch.get_float32_matmul_precision()
    with computing(torch.float32, CPU):
        assert torch.get_float32_matmul_precision() == library
    assert torch.get_float32_matmul_precision() == before


def test_the_choice_is_the_faster_one_here():
    """Products of both kinds, in turn: of those that differ by a third the faster is taken."""
    a, b = torch.randn(1024, 512), torch.randn(512, 1024)
    half, other = a.bfloat16(), b.bfloat16()
    times: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    with computing(torch.float32, CPU):
        for _ in range(15):
            for x, y in ((a, b), (half, other)):
                begin = time.perf_counter()
                torch.matmul(x, y)
                times[x.dtype].append(time.perf_counter() - begin)
    exact, fast = (statistics.median(found) for found in times.values())
    if max(exact, fast) > 1.33 * min(exact, fast):
        assert fast_bfloat16(CPU) == (fast < exact), (exact, fast)
