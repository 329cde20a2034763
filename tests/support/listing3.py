"""The command lines of the SWIFT paper's Listing 3 (arXiv 2408.05517), and what is typed here instead."""

from typing import NamedTuple


class Line(NamedTuple):
    """One of them.

    Attributes:
        swift: the paper's.
        ours: None: there is nothing like it yet.
        note: what it takes, or what it waits for.
        tested: the test that runs the same thing small; where there is no command, none.
    """

    swift: str
    ours: str | None
    note: str = ""
    tested: str = ""


INFERENCE = "to come with inference and serving"
EVALUATION = "to come with evaluation"

LISTING_3 = (
    Line(
        "NPROC_PER_NODE=8 swift sft --model_type qwen1half-32b-chat --dataset blossom-math-zh "
        "--deepspeed default-zero3",
        "swift-mega bridge sft --model Qwen/Qwen1.5-32B-Chat --dataset Azure99/blossom-math-v2 --deepspeed zero3 "
        "--nproc 8 --output runs/math",
        "extra `deepspeed`; `--tuner full` for all weights",
        "tests/hf_bridge/methods/test_sft.py",
    ),
    Line(
        "swift rlhf --model_type llama3-8b-instruct --rlhf_type dpo --dataset hh-rlhf",
        "swift-mega bridge rlhf --model meta-llama/Meta-Llama-3-8B-Instruct --method dpo --dataset hh-rlhf "
        "--output runs/dpo",
        "",
        "tests/hf_bridge/methods/rlhf",
    ),
    Line("swift infer --model_type internvl2-8b --infer_backend lmdeploy", None, INFERENCE),
    Line("swift deploy --ckpt_dir /mnt/my-custom/ckpt-1100 --infer_backend vllm", None, INFERENCE),
    Line("swift eval --model_type llama3-8b-instruct --eval_dataset ceval gsm8k", None, EVALUATION),
    Line("swift eval --model_type internvl2-8b --eval_dataset COCO_VAL", None, EVALUATION),
    Line("swift eval --eval_url https://127.0.0.1/8000 --eval_dataset mmlu", None, EVALUATION),
    Line("swift eval --model_type llama3-8b-instruct --custom_eval_config /mnt/my-dataset.json", None, EVALUATION),
    Line(
        "swift export --ckpt_dir /mnt/my-custom/ckpt-1100 --merge_lora true",
        "swift-mega convert Qwen/Qwen2-7B-Instruct models/merged --to hf --adapter runs/chat/model",
        "the base is named; it is only read",
        "tests/converters/test_merge.py",
    ),
    Line("swift export --ckpt_dir /mnt/my-custom/ckpt-1100 --quant_method awq", None, "to come with export"),
    Line("swift export --ckpt_dir /mnt/my-custom/ckpt-1100 --to_ollama true", None, "to come with export"),
    Line(
        "swift export --model_type qwen2-7b-instruct --to_megatron true",
        "swift-mega convert Qwen/Qwen2-7B-Instruct megatron/qwen2-7b",
        "and back by the same command",
        "tests/converters/test_convert.py",
    ),
)


def table() -> str:
    """Markdown."""
    rows = ["| the paper's Listing 3 | here |", "|---|---|"]
    for line in LISTING_3:
        ours = line.note if line.ours is None else f"`{line.ours}`" + (f" ({line.note})" if line.note else "")
        rows.append(f"| `{line.swift}` | {ours} |")
    return "\n".join(rows)
