"""Llama's generations."""

from dataclasses import replace

from hf_bridge.templates.template import EVERYONE, Template

LLAMA2 = Template(
    name="llama2",
    prefix="{bos}",
    user="[INST] {content} [/INST]",
    assistant="",
    answer=" {content} {eos}",
    stop=("{eos}",),
    system_in_user="<<SYS>>\n{content}\n<</SYS>>\n\n",
    separator="{bos}",
    strip=EVERYONE,
)

LLAMA3 = Template(
    name="llama3",
    prefix="{bos}",
    user="<|start_header_id|>user<|end_header_id|>\n\n{content}<|eot_id|>",
    assistant="<|start_header_id|>assistant<|end_header_id|>\n\n",
    answer="{content}<|eot_id|>",
    stop=("<|eot_id|>",),
    system="<|start_header_id|>system<|end_header_id|>\n\n{content}<|eot_id|>",
    tool="<|start_header_id|>ipython<|end_header_id|>\n\n{content}<|eot_id|>",
    strip=EVERYONE,
    agent="llama3",
)

LLAMA3_2 = replace(
    LLAMA3,
    name="llama3_2",
    # The date that the published template has where the clock is not asked.
    system="<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n{content}<|eot_id|>",
    default_system="",
)
"""Llama 3.1, 3.2 and 3.3."""

LLAMA4 = Template(
    name="llama4",
    prefix="{bos}",
    user="<|header_start|>user<|header_end|>\n\n{content}<|eot|>",
    assistant="<|header_start|>assistant<|header_end|>\n\n",
    answer="{content}<|eot|>",
    stop=("<|eot|>",),
    system="<|header_start|>system<|header_end|>\n\n{content}<|eot|>",
    tool="<|header_start|>ipython<|header_end|>\n\n{content}<|eot|>",
    strip=("system",),
    agent="llama4",
)
