"""How much slower the paper's software was than the kernels that were measured.

aiconfigurator's kernels are of 2025/26; the paper ran TensorRT-LLM of 2024. An era multiplies what decoding takes and
what prefilling adds to it, by tensor-parallel size and precision. `FACTORS` are what
`erlab.simulation.validation.fit_era` finds on NVIDIA's published saturation throughputs of that version; its
cross-validated error is reported beside every use. Those cells saturate the machine (some 10 to 2,000 sequences a
batch): that the factors hold at low load too is an assumption.

>>> factors(None, "FP8", 4)
(1.0, 1.0)
"""

from erlab.spec import require

FACTORS: dict[str, dict[tuple[str, int], tuple[float, float]]] = {
    "0.13": {
        ("FP16", 1): (1.20, 1.06),
        ("FP16", 2): (1.19, 1.03),
        ("FP16", 4): (1.55, 0.99),
        ("FP16", 8): (1.94, 0.92),
        ("FP8", 1): (1.16, 0.85),
        ("FP8", 2): (1.25, 0.93),
        ("FP8", 4): (1.28, 0.94),
        ("FP8", 8): (1.28, 0.74),
    },
}


def factors(era: str | tuple[float, float] | None, precision: str, tensor_parallel: int) -> tuple[float, float]:
    """By how much the era's decoding takes longer, and what prefilling adds; 1 and 1 for None (kernels as measured).

    Two numbers instead of a name are those factors. `precision` as `hardware.arithmetic` names it; INT8 weight-only
    takes FP16's, no published cell has it.
    """
    if era is None:
        return 1.0, 1.0
    if isinstance(era, tuple):
        require(len(era) == 2 and min(era) > 0, "era", "Setup", "be a name, None or two factors above 0", era)
        return era
    require(era in FACTORS, "era", "Setup", f"be None or one of {', '.join(FACTORS)}", era)
    name = "FP8" if precision == "FP8" else "FP16"
    allowed = "be 1, 2, 4 or 8, the sizes of published cells"
    require((name, tensor_parallel) in FACTORS[era], "tensor_parallel", f"era {era}", allowed, tensor_parallel)
    return FACTORS[era][name, tensor_parallel]
