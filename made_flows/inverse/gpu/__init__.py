"""The sweeps of the sequential inverse as Triton kernels, for GPUs: one launch for a sweep."""
