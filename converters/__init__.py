"""Hugging Face ⇄ Megatron weights as a rearrangement of rows: no model, no GPU, no arithmetic."""
