"""Tuning on transformers, PEFT and TRL, which import torchao wherever it is installed."""

from swift_mega.compat.quiet import hide_when_imported

hide_when_imported()
