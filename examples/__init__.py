"""Scripts that make something to start from."""
