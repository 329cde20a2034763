"""DeepSeek's generations."""

from dataclasses import replace

from hf_bridge.templates.template import Template, Thinking

DEEPSEEK_V2 = Template(
    name="deepseek_v2",
    prefix="{bos}",
    user="User: {content}\n\n",
    assistant="Assistant:",
    answer=" {content}{eos}",
    stop=("{eos}",),
    system="{content}\n\n",
)

DEEPSEEK_V3 = Template(
    name="deepseek_v3",
    prefix="{bos}",
    user="<｜User｜>{content}",
    assistant="<｜Assistant｜>",
    answer="{content}<｜end▁of▁sentence｜>",
    stop=("<｜end▁of▁sentence｜>",),
    system="{content}",
    tool="{content}",
    after_tool="",
    agent="deepseek",
)

DEEPSEEK_R1 = replace(DEEPSEEK_V3, name="deepseek_r1", thinking=Thinking(past=""))
"""R1 and its distilled models."""
