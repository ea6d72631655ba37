"""A Linux CPU: convolutions as matrix products, and decoding in pieces, a core each."""
