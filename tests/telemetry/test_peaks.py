import pytest

from brickreel.evaluation import hardware
from brickreel.telemetry import peaks


@pytest.mark.parametrize(
    ("name", "memory_gib", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 79.6, 989.4),
        ("NVIDIA GH200 480GB", 95.6, 989.4),
        ("NVIDIA A100-SXM4-40GB", 39.4, 312.0),
        ("NVIDIA L4", 22.5, 121.0),
        ("NVIDIA L40S", 44.9, 362.05),
        ("NVIDIA_H100_80GB_HBM3", 79.6, 989.4),
        ("nvidia_a100_sxm4_40gb", 39.4, 312.0),
    ],
)
def test_a_gpu_is_known_by_whole_words_of_its_name(name, memory_gib, tflops):
    assert hardware.gpu(name).memory_gib == memory_gib
    assert peaks.bf16_tflops(name) == tflops


@pytest.mark.parametrize("name", ["NVIDIA L40", "NVIDIA RTX A4000", "NVIDIA RTX A1000", "NVIDIA A10G", "", None])
def test_a_gpu_that_is_not_in_the_tables_is_not_taken_for_another(name):
    assert hardware.gpu(name) is None
    assert peaks.bf16_tflops(name) is None
