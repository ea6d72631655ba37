"""NVIDIA GPUs: convolutions in two dimensions for cuDNN, fused kernels, recorded synthesis."""
