"""How many floating point operations a device can do: the dense bf16 peak in the maker's data sheet, without sparsity.

MFU divides by it what `swift_mega.model.flops` counts.
"""

import re

PEAK_BF16_TFLOPS = {
    r"NVIDIA A100.*": 312.0,
    r"NVIDIA A800.*": 312.0,
    r"NVIDIA A40": 149.7,
    r"NVIDIA A30": 165.0,
    r"NVIDIA A10": 125.0,
    r"NVIDIA RTX A6000": 154.8,
    r"NVIDIA RTX 6000 Ada Generation": 364.2,
    r"NVIDIA L4": 121.0,
    r"NVIDIA L40": 181.05,
    r"NVIDIA L40S": 362.05,
    r"NVIDIA H20": 148.0,
    r"NVIDIA H100 PCIe": 756.5,
    r"NVIDIA H100 NVL": 835.5,
    r"NVIDIA H100 (80GB|64GB|96GB) HBM\w+": 989.4,
    r"NVIDIA H800": 989.4,
    r"NVIDIA H200": 989.4,
    r"NVIDIA H200 NVL": 835.5,
    r"NVIDIA GH200.*": 989.4,
    r"NVIDIA B200": 2250.0,
    r"NVIDIA GB200": 2500.0,
    r"NVIDIA GeForce RTX 3090": 71.2,
    r"NVIDIA GeForce RTX 4090": 165.2,
    r"NVIDIA GeForce RTX 5090": 209.5,
    r"AMD Instinct MI300X.*": 1307.4,
}
"""Dense bf16 with fp32 accumulation, from the makers' data sheets, by the whole name that torch reports."""


def peak_flops(device_name: str, dtype: str) -> float | None:
    """FLOP/s the device can do at most, or None where that is not known: there is no MFU then, never a guess.

    Known for `torch.bfloat16` only: in fp32 the peak depends on whether TF32 is allowed. A CPU, a slice of a GPU
    (MIG), a laptop's variant are not known.
    """
    if dtype != "torch.bfloat16" or " MIG " in device_name:
        return None
    known = (peak for name, peak in PEAK_BF16_TFLOPS.items() if re.fullmatch(name, device_name))
    tflops = next(known, None)
    return None if tflops is None else tflops * 1e12
