"""Where tensors lie on disk."""
