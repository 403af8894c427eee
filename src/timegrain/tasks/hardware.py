"""What GPUs can do at most, and what of it networks like these are assumed to reach.

Peaks are those of dense products (no sparsity) in the makers' data sheets and white papers; memory is what is printed
on the box. They are facts about the cards, not measurements of this project, which has run on no GPU.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

# Share of the peak that 3-D convolutions with batch norms reach: they wait for memory more than they multiply. An
# assumption, taken from what such networks usually reach; nothing here was measured on a GPU.
UTILISATION_TENSOR = (0.15, 0.30)
# Plain 32-bit arithmetic is slow enough for memory to keep up with more of it. An assumption as well.
UTILISATION_PLAIN = (0.30, 0.60)
# A device's context, its libraries' work space, and what the allocator cannot use, beside the tensors. Assumptions.
CONTEXT_BYTES = 1.5e9
FRAGMENTATION = 0.08


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU.

    Args:
        title: Its name.
        memory_gib: Of one card.
        half: Peak TFLOP/s of 16-bit products with 32-bit sums; None where it has no tensor cores.
        tf32: Peak of products in TensorFloat-32, which PyTorch uses for convolutions of 32-bit networks; None without.
        fp32: Peak of plain 32-bit arithmetic.
        bf16: Whether it has bfloat16; the others take 16-mixed.
        source: Where the numbers are printed.
    """

    title: str
    memory_gib: int
    half: float | None
    tf32: float | None
    fp32: float
    bf16: bool
    source: str

    def usable_bytes(self) -> float:
        """Bytes that a run's tensors may fill."""
        return (self.memory_gib * 2**30 - CONTEXT_BYTES) / (1 + FRAGMENTATION)

    def rate(self, precision: str) -> tuple[float, float, str]:
        """FLOP/s that a run may reach: from, to, and the peak they are a share of in words."""
        if precision.endswith("mixed") and self.half is not None:
            peak, name, share = self.half, "16 bits", UTILISATION_TENSOR
        elif not precision.endswith("mixed") and self.tf32 is not None:
            peak, name, share = self.tf32, "TensorFloat-32", UTILISATION_TENSOR
        else:
            peak, name, share = self.fp32, "32 bits", UTILISATION_PLAIN
        low, high = (1e12 * peak * part for part in share)
        return low, high, f"{share[0]:.0%} to {share[1]:.0%} of {peak:,g} TFLOP/s in {name}"


_ADA = "NVIDIA Ada GPU architecture white paper v2.1"
_A100 = "NVIDIA A100 data sheet"
_H100 = "NVIDIA H100 data sheet (printed with sparsity, halved)"
GPUS: dict[str, Gpu] = {
    "h200": Gpu("H200 SXM", 141, 989.5, 494.5, 67.0, True, "NVIDIA H200 data sheet (printed with sparsity, halved)"),
    "h100": Gpu("H100 SXM", 80, 989.5, 494.5, 67.0, True, _H100),
    "h100-pcie": Gpu("H100 PCIe", 80, 756.0, 378.0, 51.2, True, _H100),
    "a100-80": Gpu("A100 80 GB", 80, 312.0, 156.0, 19.5, True, _A100),
    "a100-40": Gpu("A100 40 GB", 40, 312.0, 156.0, 19.5, True, _A100),
    "l40s": Gpu("L40S", 48, 362.0, 183.0, 91.6, True, "NVIDIA L40S data sheet (printed with sparsity, halved)"),
    "l4": Gpu("L4", 24, 121.0, 60.0, 30.3, True, "NVIDIA L4 data sheet (printed with sparsity, halved)"),
    "a10": Gpu("A10", 24, 125.0, 62.5, 31.2, True, "NVIDIA A10 data sheet"),
    "rtx4090": Gpu("GeForce RTX 4090", 24, 165.2, 82.6, 82.6, True, _ADA),
    "rtx3090": Gpu("GeForce RTX 3090", 24, 71.0, 35.6, 35.6, True, "NVIDIA Ampere GA102 white paper"),
    "v100": Gpu("V100 SXM2 32 GB", 32, 125.0, None, 15.7, False, "NVIDIA V100 data sheet"),
    "v100-16": Gpu("V100 SXM2 16 GB", 16, 125.0, None, 15.7, False, "NVIDIA V100 data sheet"),
    "t4": Gpu("T4", 16, 65.0, None, 8.1, False, "NVIDIA T4 data sheet"),
}
_OTHER_NAMES = {"a100": "a100-80", "4090": "rtx4090", "3090": "rtx3090", "h100-sxm": "h100"}


def find_gpu(name: str) -> Gpu:
    """A GPU by its name in :data:`GPUS`.

    Raises:
        ValueError: There is none of that name; the message lists them.
    """
    key = name.lower().replace(" ", "").replace("_", "-")
    key = _OTHER_NAMES.get(key, key)
    if key not in GPUS:
        close = difflib.get_close_matches(key, GPUS, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(f"--gpu {name}: not in the table.{hint} There are {', '.join(GPUS)}, and cpu for this machine")
    return GPUS[key]
