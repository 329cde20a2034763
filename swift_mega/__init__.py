"""Large-scale pretraining of language models on Megatron-Core. Nothing is imported here: see README's guided tour."""
