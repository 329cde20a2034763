"""A model, data and a small run, in folders of its own, for tests of what `swift-mega pretrain` makes of them."""

import json
import shutil
from pathlib import Path
from typing import Any


class Place:
    """A model, data and a run that works, to be spoiled."""

    def __init__(self, folder: Path, model: Path, data: Path) -> None:
        self.folder = folder
        self.model = Path(shutil.copytree(model, folder / "model"))
        for file in data.parent.glob(f"{data.name}.*"):
            shutil.copyfile(file, folder / file.name)
        self.data = folder / data.name
        self.output = folder / "out"

    def argv(self, *options: str) -> list[str]:
        """The command of a small run; later options win."""
        return [
            *["pretrain", "--output", str(self.output), "--model.path", str(self.model)],
            *["--data.train", str(self.data), "--sequence-length", "16", "--num-workers", "0"],
            *["--steps", "2", "--global-batch-size", "2", "--tensorboard", "false", *options],
        ]

    def change_json(self, file: Path, **values: Any) -> None:
        """Change a JSON file."""
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    def change_config(self, **values: Any) -> None:
        """Change the model's config.json."""
        self.change_json(self.model / "config.json", **values)
