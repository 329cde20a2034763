"""LoRA by `bridge sft` ÷ the barest PEFT loop on the same model and rows: what the run around it costs.

    python tests/bench/bridge_step.py step      seconds of a step; goal ≤ 1.03
    python tests/bench/bridge_step.py memory    peak resident memory; goal ≤ 1.05
    python tests/bench/bridge_step.py start     seconds from the command to the end of the first step

Ours is a whole run: data loader, log line, metrics file and signal handling at every step. The bare loop has torch's
AdamW, transformers' model with its own loss and PEFT's LoRA, one row at a time. `step` runs both in one process, a
step each in turn, and checks that their losses are equal to 1e-5; the ratio is the median over the pairs. `memory` and
`start` give each side a process of its own, in turn; the rows of ours are in the cache, as the other has no such work.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WARMUP_PAIRS, PAIRS, RUNS = 4, 30, 3
ROWS, ACCUMULATION, RATE = 64, 4, 1e-3
WORDS = "And God said, Let there be light: and there was light. "


def main(what: str) -> None:
    """Measure, and print one ratio."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder)
        {"step": step, "memory": memory, "start": start}[what](folder)


def make_inputs(folder: Path) -> None:
    """A llama of 30 million parameters and texts of about 250 tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.support import newcomer

    newcomer.tiny_model(folder / "model")
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=4096, **sizes)).save_pretrained(folder / "model")
    rows = [{"text": WORDS * (7 + n % 4) + str(n)} for n in range(ROWS)]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def options(folder: Path, steps: int) -> dict[str, Any]:
    """The run, as YAML has it."""
    return {
        "model": str(folder / "model"),
        "output": str(folder / f"run-{time.monotonic_ns()}"),
        "data": {"dataset": [str(folder / "texts.jsonl")], "cache_dir": str(folder / "cache")},
        "tuning": {"dropout": 0.0},
        "train": {
            "max_steps": steps,
            "gradient_accumulation_steps": ACCUMULATION,
            "learning_rate": RATE,
            "lr_scheduler_type": "constant",
            "warmup_ratio": 0.0,
            "gradient_checkpointing": False,
            "tensorboard": False,
        },
    }


class Bare:
    """The loop that everybody writes first."""

    def __init__(self, folder: Path) -> None:
        import peft
        import torch
        from transformers import AutoModelForCausalLM

        lora = peft.LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=32, target_modules="all-linear")
        self.model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "model"), lora)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=RATE, weight_decay=0.01)

    def step(self, rows: list[list[int]]) -> float:
        """The loss of a step."""
        import torch

        count = sum(len(row) - 1 for row in rows)
        self.model.train()
        self.optimizer.zero_grad()
        total = 0.0
        for row in rows:
            ids = torch.tensor([row])
            loss = self.model(input_ids=ids, labels=ids, num_items_in_batch=count).loss
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        return total


def rows_of(folder: Path) -> list[list[int]]:
    """Token ids of all texts, in the order of the file."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    lines = (folder / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    return [[*tokenizer(json.loads(line)["text"])["input_ids"], tokenizer.eos_token_id] for line in lines]


def step(folder: Path) -> None:
    """Seconds of a step."""
    import torch
    from transformers import TrainerCallback

    from hf_bridge.data.rows import load_rows
    from hf_bridge.methods.config import TuneConfig
    from hf_bridge.methods.pretrain import pretrain
    from swift_mega.base import metrics
    from swift_mega.base.config import build

    config = build(TuneConfig, options(folder, WARMUP_PAIRS + PAIRS))
    rows, bare = rows_of(folder), Bare(folder)
    order = load_rows(config.data).train.number.tolist()
    losses, seconds = list[float](), list[tuple[float, float]]()

    class Pairing(TrainerCallback):
        def on_train_begin(self, *args: Any, model: Any, **kwargs: Any) -> None:
            bare.model.load_state_dict(model.state_dict())
            self.mark = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            ours, begun = time.perf_counter() - self.mark, time.perf_counter()
            epoch, first = divmod((state.global_step - 1) * ACCUMULATION, ROWS)
            generator = torch.Generator().manual_seed(config.train.seed + epoch)
            numbers = torch.randperm(ROWS, generator=generator)[first : first + ACCUMULATION].tolist()
            losses.append(bare.step([rows[order[number]] for number in numbers]))
            self.mark = time.perf_counter()
            seconds.append((ours, self.mark - begun))

    pretrain(config, [Pairing()])
    own = [line["loss"] for line in metrics.read(Path(config.output)) if "loss" in line]
    worst = max(abs(one / other - 1) for one, other in zip(own, losses, strict=True))
    assert worst < 1e-5, f"losses differ by {worst}"
    ratios = sorted(ours / theirs for ours, theirs in seconds[WARMUP_PAIRS:])
    low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
    print(f"LoRA step ÷ bare PEFT loop: {statistics.median(ratios):.3f}", end=" ")
    print(f"({len(ratios)} pairs, half of them within {low:.3f}–{high:.3f}; losses equal to {worst:.0e})")


def memory(folder: Path) -> None:
    """Peak resident memory of ten steps."""
    sides = {side: [alone(side, folder, 10)["rss"] for _ in range(RUNS)] for side in ("ours", "bare")}
    ours, bare = (statistics.median(sides[side]) / 1e9 for side in ("ours", "bare"))
    print(f"peak RSS ÷ bare PEFT loop: {ours / bare:.3f} ({ours:.2f} and {bare:.2f} GB)")


def start(folder: Path) -> None:
    """Seconds to the end of the first step."""
    pairs = [(alone("ours", folder, 1)["s"], alone("bare", folder, 1)["s"]) for _ in range(RUNS + 1)][1:]
    ratio = statistics.median(ours / bare for ours, bare in pairs)
    ours, bare = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"start to first step ÷ bare PEFT loop: {ratio:.2f} ({ours:.1f} and {bare:.1f} s; rows cached)")


def alone(side: str, folder: Path, steps: int) -> dict[str, float]:
    """One side in a process of its own: seconds until its steps are done, and its peak memory."""
    begun = time.time()
    command = [sys.executable, __file__, side, str(folder), str(steps)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "s": found["ended"] - begun}


def ours(folder: Path, steps: int) -> None:
    """Our side, alone."""
    from hf_bridge.methods.config import TuneConfig
    from hf_bridge.methods.pretrain import pretrain
    from swift_mega.base import metrics
    from swift_mega.base.config import build

    config = build(TuneConfig, options(folder, steps))
    pretrain(config)
    steps_done = [line for line in metrics.read(Path(config.output)) if "loss" in line]
    report(steps_done[-1]["time"])


def bare(folder: Path, steps: int) -> None:
    """The other side, alone."""
    rows, loop = rows_of(folder), Bare(folder)
    for number in range(steps):
        loop.step(rows[number * ACCUMULATION : (number + 1) * ACCUMULATION])
    report(time.time())


def report(ended: float) -> None:
    """The last line of a process."""
    print(json.dumps({"ended": ended, "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    if sys.argv[1:2] in (["ours"], ["bare"]):
        {"ours": ours, "bare": bare}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main(sys.argv[1] if len(sys.argv) > 1 else "step")
