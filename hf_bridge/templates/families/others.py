"""Families with a form of their own."""

from hf_bridge.templates.template import EVERYONE, Template

BAICHUAN = Template(
    name="baichuan",
    user="<reserved_106>{content}",
    assistant="<reserved_107>",
    answer="{content}{eos}",
    stop=("{eos}",),
    system="{content}",
)
"""Baichuan 2."""

MINICPM = Template(
    name="minicpm",
    prefix="{bos}",
    user="<用户>{content}",
    assistant="<AI>",
    answer="{content}{eos}",
    stop=("{eos}",),
    system="{content}",
    strip=EVERYONE,
)
"""MiniCPM 1 and 2."""

GRANITE = Template(
    name="granite",
    user="<|start_of_role|>user<|end_of_role|>{content}<|end_of_text|>\n",
    assistant="<|start_of_role|>assistant<|end_of_role|>",
    answer="{content}<|end_of_text|>",
    stop=("<|end_of_text|>",),
    system="<|start_of_role|>system<|end_of_role|>{content}<|end_of_text|>\n",
    separator="\n",
    suffix="\n",
    tool="<|start_of_role|>tool_response<|end_of_role|>{content}<|end_of_text|>\n",
    agent="granite",
)
"""Granite 3."""

OLMO = Template(
    name="olmo",
    prefix="{bos}",
    user="<|user|>\n{content}\n",
    assistant="<|assistant|>\n",
    answer="{content}{eos}",
    stop=("{eos}",),
    system="<|system|>\n{content}\n",
    separator="\n",
)
"""OLMo and OLMo 2 after instruction tuning."""

KIMI = Template(
    name="kimi",
    user="<|im_user|>user<|im_middle|>{content}<|im_end|>",
    assistant="<|im_assistant|>assistant<|im_middle|>",
    answer="{content}<|im_end|>",
    stop=("<|im_end|>",),
    system="<|im_system|>system<|im_middle|>{content}<|im_end|>",
    default_system="You are a helpful assistant",
    tool="<|im_system|>tool<|im_middle|>{content}<|im_end|>",
    agent="kimi",
)
"""Kimi K2."""

EXAONE = Template(
    name="exaone",
    user="[|user|]{content}\n",
    assistant="[|assistant|]",
    answer="{content}[|endofturn|]",
    stop=("[|endofturn|]",),
    system="[|system|]{content}[|endofturn|]\n",
    default_system="",
    separator="\n",
    suffix="\n",
)
"""EXAONE 3 and 3.5."""

ZEPHYR = Template(
    name="zephyr",
    user="<|user|>\n{content}{eos}\n",
    assistant="<|assistant|>\n",
    answer="{content}{eos}",
    stop=("{eos}",),
    system="<|system|>\n{content}{eos}\n",
    separator="\n",
    suffix="\n",
)

VICUNA = Template(
    name="vicuna",
    prefix="{bos}",
    user="USER: {content} ",
    assistant="ASSISTANT:",
    answer=" {content}{eos}",
    stop=("{eos}",),
    system="{content} ",
    default_system="A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
)
"""Vicuna 1.1 and 1.5."""

ALPACA = Template(
    name="alpaca",
    prefix="{bos}",
    user="### Instruction:\n{content}\n\n",
    assistant="### Response:\n",
    answer="{content}{eos}",
    stop=("{eos}",),
    system="{content}\n\n",
    default_system="Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.",
    separator="\n\n",
)

PLAIN = Template(
    name="plain",
    prefix="{bos}",
    user="{content}",
    assistant="",
    answer="{content}{eos}",
    stop=("{eos}",),
    system="{content}",
)
"""Text as it is, for base models."""
