"""What GPUs hold and draw. Their peak FLOPs stand beside the telemetry that divides by them."""

from typing import NamedTuple

from brickreel.cluster.gpu_names import names


class Gpu(NamedTuple):
    """A row of NVIDIA's data sheets."""

    part: str
    """Words of the name that NVML gives the GPU; the first row that matches counts."""
    memory_gib: float
    """What a process can allocate of the advertised memory: NVML's total, in GiB."""
    power_w: float
    """Board power at the default limit."""
    source: str


GPUS = (
    Gpu("H100 PCIe", 79.6, 350, "NVIDIA H100 data sheet, PCIe: 80 GB, 350 W"),
    Gpu("H100 NVL", 93.6, 400, "NVIDIA H100 data sheet, NVL: 94 GB, 350-400 W"),
    Gpu("H100", 79.6, 700, "NVIDIA H100 data sheet, SXM5: 80 GB, 700 W"),
    Gpu("H200 NVL", 140.4, 600, "NVIDIA H200 data sheet, NVL: 141 GB, 600 W"),
    Gpu("H200", 140.4, 700, "NVIDIA H200 data sheet, SXM: 141 GB, 700 W"),
    Gpu("GH200", 95.6, 700, "NVIDIA GH200 data sheet: 96 GB, GPU part of 450-1000 W"),
    Gpu("B200", 179.0, 1000, "NVIDIA DGX B200 data sheet: 1,440 GB and about 8 x 1000 W"),
    Gpu("A100-SXM4-40GB", 39.4, 400, "NVIDIA A100 data sheet, SXM 40 GB"),
    Gpu("A100-PCIE-40GB", 39.4, 250, "NVIDIA A100 data sheet, PCIe 40 GB"),
    Gpu("A100", 79.3, 400, "NVIDIA A100 data sheet, SXM 80 GB"),
    Gpu("A40", 44.9, 300, "NVIDIA A40 data sheet: 48 GB, ECC on"),
    Gpu("A10", 22.5, 150, "NVIDIA A10 data sheet: 24 GB, ECC on"),
    Gpu("L40S", 44.9, 350, "NVIDIA L40S data sheet: 48 GB, ECC on"),
    Gpu("L4", 22.5, 72, "NVIDIA L4 data sheet: 24 GB, ECC on"),
)


def gpu(name: str | None) -> Gpu | None:
    """The row of a GPU; None when it is not in the table."""
    return next((row for row in GPUS if names(row.part, name)), None)
