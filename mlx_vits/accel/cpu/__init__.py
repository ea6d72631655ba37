"""Speed-ups on a CPU: convolutions as matrix products and, on Linux, multi-core decoding."""
