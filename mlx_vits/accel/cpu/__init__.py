"""A CPU: convolutions as matrix products and, on Linux, decoding in pieces, a core each."""
