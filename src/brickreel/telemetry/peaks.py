"""Peak dense BF16 throughput of GPUs, from their data sheets: the denominator of MFU."""

from brickreel.cluster.gpu_names import names

# First match wins. TFLOP/s, dense (without sparsity).
BF16_TFLOPS = (
    ("H100 PCIe", 756.0, "NVIDIA H100 PCIe data sheet: 1,513 with sparsity"),
    ("H100 NVL", 835.5, "NVIDIA H100 data sheet, NVL: 1,671 with sparsity"),
    ("H100", 989.4, "NVIDIA H100 data sheet, SXM5: 1,979 with sparsity"),
    ("H200 NVL", 835.5, "NVIDIA H200 data sheet, NVL: 1,671 with sparsity"),
    ("H200", 989.4, "NVIDIA H200 data sheet, SXM5: 1,979 with sparsity"),
    ("GH200", 989.4, "NVIDIA GH200 data sheet: 1,979 with sparsity"),
    ("B200", 2250.0, "NVIDIA DGX B200 data sheet: 36 PFLOPS for 8 GPUs with sparsity"),
    ("A100", 312.0, "NVIDIA A100 data sheet"),
    ("A40", 149.7, "NVIDIA A40 data sheet"),
    ("A10", 125.0, "NVIDIA A10 data sheet"),
    ("L40S", 362.05, "NVIDIA L40S data sheet"),
    ("L4", 121.0, "NVIDIA L4 data sheet: 242 with sparsity"),
)


def bf16_tflops(gpu_name: str | None) -> float | None:
    """Peak of the GPU that NVML calls by this name; None when it is not in the table."""
    return next((peak for part, peak, _ in BF16_TFLOPS if names(part, gpu_name)), None)
