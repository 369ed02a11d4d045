"""The compiled parts of the sequential inverse (Numba)."""
