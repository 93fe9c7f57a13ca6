"""Slowdown of the paper's TensorRT-LLM version relative to the measured kernels.

The kernels of aiconfigurator were measured in 2025/26; the paper used TensorRT-LLM of 2024. An era multiplies the time
of decoding and the time that prefilling adds to it, per tensor-parallel size and precision. `FACTORS` are the result of
`erlab.simulation.validation.fit_era` on NVIDIA's published saturation throughputs of that version; notebook 09 shows
the cross-validated error. Those cells saturate the machine; that the factors also apply at low load is an assumption.

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
    """Return the factors on decode time and added prefill time.

    Args:
        era: Name in `FACTORS`; None for the kernels as measured (1 and 1); or the two factors themselves, above 0.
        precision: FP16, FP8 or INT8, as `hardware.arithmetic` returns it. INT8 uses the factors of FP16, since no
            published cell has INT8.
        tensor_parallel: 1, 2, 4 or 8.
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
