"""GLM-4, whose answers end with the token that opens the next turn."""

from dataclasses import replace

from hf_bridge.templates.template import Template, Thinking

GLM4 = Template(
    name="glm4",
    prefix="[gMASK]<sop>",
    user="<|user|>\n{content}",
    assistant="<|assistant|>",
    answer="\n{content}",
    call="{content}",
    stop=("<|user|>", "<|observation|>"),
    system="<|system|>\n{content}",
    tool="<|observation|>\n{content}",
    ends_with_next=True,
    agent="glm4",
)

GLM4_5 = replace(
    GLM4,
    name="glm4_5",
    answer="{content}",
    call=None,
    thinking=Thinking(
        open="\n<think>",
        close="</think>\n",
        empty="\n<think></think>\n",
        middle="\n<think></think>\n",
        past="\n<think></think>\n",
    ),
    strip=("assistant",),
    agent="glm4_5",
)
