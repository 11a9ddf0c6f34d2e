"""What the machine can do: which precision is fast, which library computes float32."""

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
