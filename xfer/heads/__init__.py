"""What makes an answer of fused maps: a pyramid of them, and the heads that stand on it."""
