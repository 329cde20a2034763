"""Checkpoints as Hugging Face folders, written from memory while the run goes on.

ROOT/iter_0000012/               config, tokenizer and safetensors; whole or not there: renamed when complete
ROOT/iter_0000012.unfinished/    being written, or left by a kill; the next export clears it away
"""

import shutil
from pathlib import Path
from typing import Any

from converters import checkpoint as folders
from swift_mega.base.writing import DiskFull, disk_full, write_errors_are_the_users
from swift_mega.model.weights import save_hf
from swift_mega.parallel.agree import on_main
from swift_mega.train.checkpoint import WAY_OUT


class Exporter:
    """Writes the exports of one run.

    Args:
        root: their folder, on a file system that all ranks see.
        chunks: the model.
        hf_folder: where config, tokenizer and chat template come from.
        keep_last: exports that stay, 0 for all.
    """

    def __init__(self, root: Path, *, chunks: list[Any], hf_folder: Path, keep_last: int) -> None:
        self.root = root
        self.chunks = chunks
        self.hf_folder = hf_folder
        self.keep_last = keep_last

    def folder(self, step: int) -> Path:
        """Where the export of a step is, or will be."""
        return self.root / folders.iteration_name(step)

    def is_there(self, step: int) -> bool:
        """Whether a step has been exported. Collective."""
        return on_main(lambda: self.folder(step).exists())

    def save(self, step: int) -> Path:
        """Export the model as it is and return the folder; an older one is removed only after this one is complete.

        Raises:
            UserError: the disk is full; nothing of the attempt is left there.
        """
        target = self.folder(step)
        unfinished = target.with_name(target.name + folders.UNFINISHED)
        try:
            on_main(self._clear)
            save_hf(self.chunks, unfinished, self.hf_folder)
        except DiskFull:
            explanation = disk_full(self.root, elsewhere=WAY_OUT)
            shutil.rmtree(unfinished, ignore_errors=True)
            raise explanation from None
        on_main(lambda: self._finish(unfinished, target))
        return target

    def _clear(self) -> None:
        with write_errors_are_the_users(self.root, option="`output`"):
            for left in self.root.glob(f"*{folders.UNFINISHED}"):
                shutil.rmtree(left)

    def _finish(self, unfinished: Path, target: Path) -> None:
        with write_errors_are_the_users(self.root, option="`output`"):
            if target.exists():
                folders.remove(target)
            unfinished.rename(target)
            exports = sorted(folder for folder in self.root.glob("iter_[0-9]*") if not folder.suffix)
            for old in folders.outdated(exports, target, self.keep_last):
                folders.remove(old)
