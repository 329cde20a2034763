"""Gemma's generations, which have no role for the system."""

from dataclasses import replace

from hf_bridge.templates.template import EVERYONE, Template

GEMMA = Template(
    name="gemma",
    prefix="{bos}",
    user="<start_of_turn>user\n{content}<end_of_turn>\n",
    assistant="<start_of_turn>model\n",
    answer="{content}<end_of_turn>",
    stop=("<end_of_turn>",),
    system_in_user="{content}\n\n",
    separator="\n",
    suffix="\n",
    strip=EVERYONE,
)

GEMMA2 = replace(GEMMA, name="gemma2")

GEMMA3 = replace(GEMMA, name="gemma3")
