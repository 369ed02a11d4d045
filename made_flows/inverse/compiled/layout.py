"""Columns of the table of layers that the sweeps read.

Z, A, SLOPE, DELTA, SUM: rows of the tile's workspace where a layer's weighted sums, activations,
derivatives of activations, deltas, and deltas sent back to a residual stream begin. SOURCE: where
what it reads begins. STREAM, STREAM_SUM: where z, and the sum of deltas, of the layer it adds to
begin; STREAM_INDEX: where its units' places in that layer begin. BIAS, NORM: places in the
vectors. BASE, GATE: units of the context's contributions before the layer's own. UNITS: how many
it has. ACTIVATION: a code. -1 stands for none.
"""

Z, A, SLOPE, SOURCE, BIAS, ACTIVATION, STREAM, STREAM_INDEX = range(8)
BASE, GATE, NORM, DELTA, SUM, UNITS, STREAM_SUM = range(8, 15)
COLUMNS = 15
