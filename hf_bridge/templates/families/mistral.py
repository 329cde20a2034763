"""Mistral's generations, which differ in their blanks, and Mixtral.

The published v1 to v3 put the system message into one of the user's turns; here that is the first, as it would
otherwise move with every round.
"""

from dataclasses import replace

from hf_bridge.templates.template import Template

MISTRAL_V1 = Template(
    name="mistral_v1",
    prefix="{bos}",
    user=" [INST] {content} [/INST]",
    assistant="",
    answer=" {content}{eos}",
    stop=("{eos}",),
    system_in_user="{content}\n\n",
)

MIXTRAL = replace(MISTRAL_V1, name="mixtral")

MISTRAL_V3 = replace(
    MISTRAL_V1,
    name="mistral_v3",
    user="[INST] {content}[/INST]",
    tool="{content}",
    call="{content}{eos}",
    agent="mistral",
)

MISTRAL_NEMO = replace(MISTRAL_V3, name="mistral_nemo", user="[INST]{content}[/INST]", answer="{content}{eos}")
"""v3 with the tokenizer Tekken."""

MISTRAL_V7 = replace(
    MISTRAL_V3, name="mistral_v7", system="[SYSTEM_PROMPT] {content}[/SYSTEM_PROMPT]", system_in_user=None
)
"""Mistral Large 2411."""

MISTRAL_V7_TEKKEN = replace(
    MISTRAL_NEMO, name="mistral_v7_tekken", system="[SYSTEM_PROMPT]{content}[/SYSTEM_PROMPT]", system_in_user=None
)
"""Mistral Small 3."""
