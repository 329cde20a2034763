"""ChatML and the families that speak it: Qwen, Yi, InternLM, SmolLM, Phi-4's dialect."""

from dataclasses import replace

from hf_bridge.templates.template import Template, Thinking

CHATML = Template(
    name="chatml",
    user="<|im_start|>user\n{content}<|im_end|>\n",
    assistant="<|im_start|>assistant\n",
    answer="{content}<|im_end|>",
    stop=("<|im_end|>",),
    system="<|im_start|>system\n{content}<|im_end|>\n",
    separator="\n",
    suffix="\n",
    tool="<|im_start|>user\n{content}<|im_end|>\n",
    agent="hermes",
)

QWEN = replace(CHATML, name="qwen", default_system="You are a helpful assistant.", agent="react")

QWEN2 = replace(CHATML, name="qwen2", default_system="You are a helpful assistant.", agent="qwen")

QWEN2_5 = replace(
    QWEN2,
    name="qwen2_5",
    default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
)

QWEN3 = replace(
    CHATML,
    name="qwen3",
    agent="qwen",
    thinking=Thinking(empty="<think>\n\n</think>\n\n", past=""),
)

QWEN3_INSTRUCT = replace(CHATML, name="qwen3_instruct", agent="qwen")
"""The 2507 instruct models, which do not think."""

SMOLLM2 = replace(
    CHATML,
    name="smollm2",
    default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
)

NEMOTRON3 = replace(
    CHATML,
    name="nemotron3",
    default_system="",
    agent=None,
    thinking=Thinking(
        close="\n</think>\n",
        empty="<think></think>",
        middle="<think></think>",
        past="<think></think>",
        forgotten="<think></think>\n",
    ),
)
"""Nemotron 3, without tools, which it writes in a notation of its own.

The published template also takes the blanks from the end of former answers.
"""

YI = replace(CHATML, name="yi")

INTERNLM2 = replace(CHATML, name="internlm2", prefix="{bos}")

INTERNLM3 = replace(INTERNLM2, name="internlm3")

PHI4 = Template(
    name="phi4",
    user="<|im_start|>user<|im_sep|>{content}<|im_end|>",
    assistant="<|im_start|>assistant<|im_sep|>",
    answer="{content}<|im_end|>",
    stop=("<|im_end|>",),
    system="<|im_start|>system<|im_sep|>{content}<|im_end|>",
)
