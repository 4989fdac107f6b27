"""Every tolerance of the tests, with its reason: absolute errors, relative to the map's maximum unless it says so."""

# Filter in float32 against float64, window by window: nine products and the exponential's own error.
FILTER_DENSE = 4e-7
# Sparse maps: windows whose coefficient of variation is large weigh tiny differences of large numbers.
FILTER_SPARSE = 1.5e-6
# Half dtypes: the result is rounded once to 11 (float16) or 8 (bfloat16) significant bits, half a unit each.
FILTER_FLOAT16 = 2.0**-11 + FILTER_SPARSE
FILTER_BFLOAT16 = 2.0**-8 + FILTER_SPARSE
# Dot products of C channels in 16 partial sums of C / 16 terms, relative to sum |F_c w_c|.
SCORES = 2e-7
# Scales are accumulated in float64 and rounded once.
SCALE = 1e-7
# Interference in blocks of 64 terms, residual of near-equal numbers; relative to the activation's maximum.
CAUSAL = 1e-6
# From float32 states to finished maps against float64: scores, interference, normalisation and filter add up; maps are
# in [0, 1], and normalisation divides by a range that the residual can make small.
PIPELINE = 3e-6
# A GPU's maps against the CPU's, relative to the maximum: other orders of summation and hardware's own exponential.
DEVICE = 2e-6
# The published program's float maps (it works in float32 where we do), as the issue of compatibility states it.
OFFICIAL_FLOAT = 3e-6
OFFICIAL_UINT8_LEVELS = 1
OFFICIAL_UINT8_SHARE = 0.002
