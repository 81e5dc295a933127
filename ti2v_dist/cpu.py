"""What this machine's CPU can do, told without torch."""

from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})


def bfloat16_instructions() -> list[str]:
    """Those that the CPU has for bfloat16, sorted: with any it computes faster in it than in float32.

    Each has other kernels, and so other bits. Empty where nobody says.
    """
    flags = CPU_INFO.read_text(encoding="utf-8").split() if CPU_INFO.is_file() else []
    return sorted(BFLOAT16.intersection(flags))
