"""What tests share: tiny models, and one launch of torchrun for many distributed cases."""
