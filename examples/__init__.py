"""Scripts that make something to start from, and judge what became of it."""

from swift_mega.compat.quiet import hide_when_imported

hide_when_imported()  # the judges import transformers alone
