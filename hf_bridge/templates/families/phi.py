"""Phi-3 and what came of it; Phi-4 itself speaks a kind of ChatML."""

from dataclasses import replace

from hf_bridge.templates.template import Template

PHI3 = Template(
    name="phi3",
    user="<|user|>\n{content}<|end|>\n",
    assistant="<|assistant|>\n",
    answer="{content}<|end|>",
    stop=("<|end|>",),
    system="<|system|>\n{content}<|end|>\n",
    separator="\n",
    suffix="\n{eos}",
)

PHI4_MINI = replace(
    PHI3,
    name="phi4_mini",
    user="<|user|>{content}<|end|>",
    assistant="<|assistant|>",
    system="<|system|>{content}<|end|>",
    separator="",
    suffix="{eos}",
)
