"""The sweeps of the sequential inverse on GPUs: as Triton kernels, or recorded in CUDA graphs."""
