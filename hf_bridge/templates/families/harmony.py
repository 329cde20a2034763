"""Harmony, the form of gpt-oss; without tools, which it describes in a notation of its own."""

from hf_bridge.templates.template import Template, Thinking

GPT_OSS = Template(
    name="gpt_oss",
    # With the date of OpenAI's own examples: that of the day would change what the model sees from run to run.
    prefix="<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
    "Knowledge cutoff: 2024-06\nCurrent date: 2025-06-28\n\nReasoning: medium\n\n"
    "# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>",
    user="<|start|>user<|message|>{content}<|end|>",
    assistant="<|start|>assistant",
    answer="<|channel|>final<|message|>{content}<|return|>",
    goes_on="<|channel|>final<|message|>{content}<|end|>",
    stop=("<|return|>", "<|end|>"),
    system="<|start|>developer<|message|># Instructions\n\n{content}\n\n<|end|>",
    thinking=Thinking(open="<|channel|>analysis<|message|>", close="<|end|><|start|>assistant", past=""),
)
