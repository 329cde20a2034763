"""A model and its tokenizer from a hub or a folder, complete: what the checkpoint lacks is an error, not a warning."""

import json
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import LogRecord
from pathlib import Path
from typing import Any

import torch

from hf_bridge.models.config import LoadingConfig, Task
from hf_bridge.models.linear import body
from hf_bridge.models.qat import prepare_qat
from hf_bridge.models.quantisation import check_saved, quantisation, quantise
from hf_bridge.models.recognise import Recognised, recognise
from hf_bridge.models.rope import scale_rope
from hf_bridge.models.tokens import check_vocabulary, set_padding
from swift_mega.base.console import is_main, say
from swift_mega.base.errors import UserError
from swift_mega.base.hub import resolve_model
from swift_mega.data.tokenizer import load_tokenizer

AUTO_CLASSES: dict[Task, str] = {
    "causal_lm": "AutoModelForCausalLM",
    "seq_cls": "AutoModelForSequenceClassification",
    "token_cls": "AutoModelForTokenClassification",
}
"""Of transformers."""

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""What transformers looks for, in this order; with `.index.json` behind them the list of several files."""

NAMED = 4
"""Keys that a message lists."""


@dataclass(frozen=True)
class Loaded:
    """A model and what belongs to it.

    Attributes:
        model: of transformers, in evaluation mode, on a CPU unless a device map or a quantisation puts it elsewhere.
        tokenizer: of transformers, with a token to pad with.
        folder: where both were read.
        recognised: what kind of model it is; `recognised.template(asked)` is the template for its chats.
    """

    model: Any
    tokenizer: Any
    folder: Path
    recognised: Recognised


def load_model(name: str, loading: LoadingConfig | None = None, task: Task = "causal_lm") -> Loaded:
    """The model in a folder, or of an id on a hub, with its tokenizer.

    Args:
        name: a folder, `org/name` on Hugging Face, or `ms::org/name` on ModelScope.
        task: the head it needs. One that the checkpoint does not have is new, and said to be.

    Raises:
        UserError: there is no such model, its files lack something or do not belong together, it needs code of its own
            and that was not allowed, or transformers cannot do what is asked of it.
    """
    import transformers

    loading = loading or LoadingConfig()
    folder = resolve_model(name, loading.revision, code=loading.trust_remote_code)
    config = read_config(folder, loading)
    _check_weights(folder)
    tokenizer = load_tokenizer(str(folder), trust_remote_code=loading.trust_remote_code)
    check_vocabulary(tokenizer, config, folder)
    if loading.rope_scaling is not None:
        scale_rope(config, loading.rope_scaling)
    if task != "causal_lm":
        config.num_labels = _labels(config, loading, task)
    check_saved(config, folder, loading.quantization)
    if loading.qat is not None and (loading.quantization is not None or hasattr(config, "quantization_config")):
        raise UserError(
            f"--loading.qat {loading.qat} trains exact weights, and these are quantised.",
            "Leave --loading.quantization out, and take a model with plain weights.",
        )
    asked = None if loading.quantization is None else quantisation(loading.quantization)
    dtype = _dtype(config, loading)
    with _explained(folder), _own_report():
        model, report = getattr(transformers, AUTO_CLASSES[task]).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            device_map=_device_map(loading),
            quantization_config=asked.config(dtype) if asked and asked.config else None,
            attn_implementation=_attention(config, loading),
            trust_remote_code=loading.trust_remote_code,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # named below, which transformers' own error does not
            output_loading_info=True,
        )
    _check_complete(model, report, folder, task)
    if asked is not None:
        quantise(model, asked, dtype)
    if loading.qat is not None:
        prepare_qat(model, loading.qat)
    set_padding(tokenizer, model)
    return Loaded(model, tokenizer, folder, recognise(name, read_raw_config(folder), tokenizer))


def read_config(folder: Path, loading: LoadingConfig) -> Any:
    """The folder's config.json as transformers has it.

    Raises:
        UserError: there is none, it is broken, or transformers has no code for it; or the folder is an adapter.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    raw = read_raw_config(folder)
    _check_code(raw, folder, loading)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=loading.trust_remote_code)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{folder / 'config.json'} cannot be used: {reason}", "Take config.json from the model's own repository."
        ) from None


def read_raw_config(folder: Path) -> dict[str, Any]:
    """What the folder's config.json says, as it stands there.

    Raises:
        UserError: there is none, it is broken, or the folder is an adapter.
    """
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
        raise UserError(
            f"{folder} holds an adapter, not a model.",
            f"Name its base{f', {base},' if base else ''} as the model; or merge it into that first: "
            "`swift-mega convert BASE OUTPUT --to hf --adapter ADAPTER`.",
        )
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} has no config.json.", "Give the folder of a model as transformers saves it.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        raise UserError(f"{path} is not JSON: {error}", "Take it from the model's own repository.") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise UserError(f"{path} has no `model_type`.", "Take it from the model's own repository.")
    return raw


def _check_code(raw: dict[str, Any], folder: Path, loading: LoadingConfig) -> None:
    """Whose code computes the model: transformers', or what comes with it."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if raw["model_type"] in CONFIG_MAPPING or (raw.get("auto_map") and loading.trust_remote_code):
        return
    if raw.get("auto_map"):
        raise UserError(
            f"the model in {folder} (`{raw['model_type']}`) brings its own Python code.",
            "Read that code; if you trust it, allow it with `--loading.trust_remote_code`.",
        )
    raise UserError(
        f"transformers {transformers.__version__} has no model of the type `{raw['model_type']}`, which "
        f"{folder / 'config.json'} names.",
        "A newer transformers may have it, or the type is misspelt.",
    )


def _check_weights(folder: Path) -> None:
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return
        if index.is_file():
            files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            missing = sorted(file for file in files if not (folder / file).is_file())
            if missing:
                raise UserError(
                    f"{folder} lacks {_some(missing)}, which {index.name} lists.", "Copy or download them again."
                )
            return
    raise UserError(
        f"{folder} has no weights: neither {' nor '.join(WEIGHTS)}, nor a list of several files.",
        "Give the folder of a model as transformers saves it.",
    )


def _labels(config: Any, loading: LoadingConfig, task: Task) -> int:
    """How many labels the head has."""
    ending = {"seq_cls": "ForSequenceClassification", "token_cls": "ForTokenClassification"}[task]
    if loading.num_labels is not None:
        if loading.num_labels < 1:
            raise UserError(f"--loading.num_labels is {loading.num_labels}.", "It must be at least 1, a score.")
        return loading.num_labels
    if any(name.endswith(ending) for name in config.architectures or ()):
        return int(config.num_labels)
    raise UserError(
        "the model has no head for labels, and a new one needs to know how many there are.",
        "Give `--loading.num_labels`: 1 for a score.",
    )


def _dtype(config: Any, loading: LoadingConfig) -> torch.dtype:
    """Of the weights, and of the arithmetic where they are quantised."""
    if loading.dtype != "auto":
        return getattr(torch, loading.dtype)  # type: ignore[no-any-return]
    if not torch.cuda.is_available():
        return torch.float32
    return config.dtype or torch.float32


def _device_map(loading: LoadingConfig) -> Any:
    """Where weights go. They are quantised where they are computed with, before a Trainer could move them there."""
    if loading.device_map is None and loading.quantization is not None and torch.cuda.is_available():
        return {"": int(os.environ.get("LOCAL_RANK", "0"))}
    return loading.device_map


def _attention(config: Any, loading: LoadingConfig) -> str | None:
    """How attention is computed. transformers' SDPA leaves out a cap of the scores (Gemma 2), without a word."""
    asked = loading.attn_implementation
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) is None:
        return asked
    if asked == "sdpa":
        raise UserError(
            f"`sdpa` leaves out the cap of attention scores (attn_logit_softcapping) that {config.model_type} has.",
            "Use `--loading.attn_implementation eager`, the default here, or `flash_attention_2`.",
        )
    return asked or "eager"


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """What transformers refuses is the user's to mend: a package that is missing, an option that a model has not."""
    from safetensors import SafetensorError

    try:
        yield
    except (ImportError, OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder} could not be loaded: {reason}", "Correct that, or load it in another way.") from None


@contextmanager
def _own_report() -> Iterator[None]:
    """Without transformers' table of keys, which `_check_complete` reads; and without its bar in a log file."""
    from transformers.utils import logging

    logger, bar = logging.get_logger("transformers.modeling_utils"), logging.is_progress_bar_enabled()
    logger.addFilter(_is_no_report)
    if not (is_main() and sys.stderr.isatty()):
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.removeFilter(_is_no_report)
        if bar:
            logging.enable_progress_bar()


def _is_no_report(record: LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def _check_complete(model: Any, report: dict[str, Any], folder: Path, task: Task) -> None:
    """The model is all from the checkpoint, and the checkpoint all in the model; but not the head of another task."""
    inside = body(model)
    missing, unexpected = report["missing_keys"], report["unexpected_keys"]
    head = {key for key in missing if task != "causal_lm" and not key.startswith(inside)}
    # The head that the checkpoint was saved with, in the place of which there is another.
    former = {key for key in unexpected if head and not key.startswith(inside)}
    for what, keys in (
        ("lacks", missing - head),
        ("has, and the model has not,", unexpected - former),
        (
            "has in another shape",
            {f"{key} ({list(ours)}, not {list(theirs)})" for key, theirs, ours in _shapes(report)},
        ),
    ):
        if keys:
            raise UserError(
                f"the checkpoint in {folder} {what} {_some(keys)}.",
                f"It is not one of {type(model).__name__}, or damaged: take config.json and weights from one place.",
            )
    if head:
        say(f"New weights, to be trained: {_some(head)} for {model.config.num_labels} label(s).")


def _shapes(report: dict[str, Any]) -> Collection[tuple[str, Any, Any]]:
    """(key, the checkpoint's shape, the model's) where they differ."""
    return report["mismatched_keys"]  # type: ignore[no-any-return]


def _some(names: Collection[str]) -> str:
    shown = sorted(names)[:NAMED]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
