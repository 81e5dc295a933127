"""The video algorithms, by their names in `SamplingParams.sampler`."""

from ti2v_dist.samplers.ti2v_zero import Sampler, sample_replace, sample_ti2v_zero, sample_ti2v_zero_reference

SAMPLERS: dict[str, Sampler] = {
    "ti2v_zero": sample_ti2v_zero,
    "ti2v_zero_reference": sample_ti2v_zero_reference,
    "replace": sample_replace,
}
