"""NVIDIA GPUs: fused kernels, kernels over many tensors at once, recorded synthesis."""
