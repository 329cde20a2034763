"""What transformers makes of a model: its held-out loss, and how it goes on with a text.

    python -m examples.judge demo/smollm2 examples/pretrain.yaml demo/before.json

The held-out samples are those that the run described by the YAML file evaluates on, so that this loss and
Megatron's `eval/loss` are the same number if the model is. Nothing of Megatron's model is used here.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swift_mega.base import config as configs
from swift_mega.base import failures
from swift_mega.base.console import progress, say
from swift_mega.methods.config import PretrainConfig

PROMPT = "Now when the morning was come,"
NEW_TOKENS = 40


def main() -> None:
    """Judge the model that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="Hugging Face folder")
    parser.add_argument("run_yaml", type=Path, help="the run whose held-out samples are taken")
    parser.add_argument("result", type=Path, help="JSON file to write")
    parser.add_argument("--prompt", default=PROMPT, help="text to continue, greedily (default: %(default)r)")
    args = parser.parse_args()
    config = configs.build(PretrainConfig, configs.read_yaml(args.run_yaml), str(args.run_yaml))
    result = judge(args.model, config, args.prompt)
    say(f"held-out loss {result['loss']:.4f} over {result['tokens']:,} tokens")
    say(f"{args.prompt} … {' '.join(result['continuation'].split())}")
    partial = args.result.with_name(args.result.name + ".partial")
    partial.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(args.result)


def judge(model_folder: Path, config: PretrainConfig, prompt: str) -> dict[str, Any]:
    """`loss` (mean over `tokens` held-out tokens), and the greedy `continuation` of `prompt`."""
    import torch
    import transformers

    # On two busy cores one thread took 16 CPU-s in all and two took 45: they spin while they wait for each other.
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # it remarks on tokenizer settings that mean nothing here
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    total, tokens = 0.0, 0
    with torch.no_grad(), progress(config.train.eval_batches, "evaluate", "batch") as bar:
        for batch in held_out(config, model.config.vocab_size):
            # In float64: over 49,152 columns torch's float32 loss on a CPU was found to be up to 1e-4 too low.
            logits = model(batch["tokens"]).logits.double().flatten(0, 1)  # [B·S, V]
            losses = torch.nn.functional.cross_entropy(logits, batch["labels"].flatten(), reduction="none")
            total += float((losses * batch["loss_mask"].flatten()).sum())
            tokens += int(batch["loss_mask"].sum())
            bar.update(1)
        ids = tokenizer(prompt, return_tensors="pt")
        said = model.generate(**ids, max_new_tokens=NEW_TOKENS, do_sample=False)[0, ids["input_ids"].shape[1] :]
    continuation = tokenizer.decode(said, skip_special_tokens=True)
    return {"loss": total / tokens, "tokens": tokens, "prompt": prompt, "continuation": continuation}


def held_out(config: PretrainConfig, vocab_size: int) -> Iterator[dict[str, Any]]:
    """The global batches that every evaluation of the run takes: tokens, labels and loss_mask, each [B, S]."""
    from swift_mega import compat

    compat.install()
    from swift_mega.data.loader import loader
    from swift_mega.data.stream import build_streams

    count = config.train.eval_batches * config.train.global_batch_size
    with tempfile.TemporaryDirectory() as cache:  # not the run's: its output folder may not be there yet
        streams = build_streams(
            config.data,
            seed=config.train.seed,
            total_train_samples=count,
            eval_samples=count,
            vocab_size=vocab_size,
            eod=None,
            cache_dir=cache,
        )
        assert streams.valid, "the run holds nothing out"
        batch_size = config.train.global_batch_size
        yield from loader(
            streams.valid, consumed_samples=0, micro_batch_size=batch_size, dp_rank=0, dp_size=1, num_workers=0
        )


if __name__ == "__main__":
    with failures.explained() as outcome:
        main()
    sys.exit(outcome.exit_code)
