"""The known devices, and no guess for others."""

import pytest

from swift_mega.base.flops import peak_flops


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA B200", 2250),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_known_devices(name: str, tflops: float) -> None:
    assert peak_flops(name, "torch.bfloat16") == tflops * 1e12


@pytest.mark.parametrize(
    "name",
    ["cpu", "", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A100-SXM4-40GB MIG 1g.5gb"],
)
def test_no_guess_for_others(name: str) -> None:
    assert peak_flops(name, "torch.bfloat16") is None


def test_no_peak_outside_bf16() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", "torch.float32") is None
