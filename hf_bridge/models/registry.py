"""Model types by name, by id, and by what a config.json says. Torch-free.

An id that is not here loads as well: its config.json says what it is.
"""

from typing import Any

from hf_bridge.models.model_type import ModelType, of, sizes
from swift_mega.base.hub import HUGGING_FACE, MODELSCOPE

_QWEN2 = (
    *sizes("Qwen/Qwen1.5-{}", "0.5B 1.8B 4B 7B 14B 32B 72B 110B"),
    *sizes("Qwen/Qwen1.5-{}-Chat", "0.5B 1.8B 4B 7B 14B 32B 72B 110B"),
    *sizes("Qwen/Qwen2-{}", "0.5B 1.5B 7B 72B"),
    *sizes("Qwen/Qwen2-{}-Instruct", "0.5B 1.5B 7B 72B"),
)
_QWEN2_5 = (
    *sizes("Qwen/Qwen2.5-{}", "0.5B 1.5B 3B 7B 14B 32B 72B"),
    *sizes("Qwen/Qwen2.5-{}-Instruct", "0.5B 1.5B 3B 7B 14B 32B 72B"),
    *sizes("Qwen/Qwen2.5-Coder-{}", "0.5B 1.5B 3B 7B 14B 32B"),
    *sizes("Qwen/Qwen2.5-Coder-{}-Instruct", "0.5B 1.5B 3B 7B 14B 32B"),
)
_QWEN2_MOE = (
    *sizes("Qwen/Qwen1.5-MoE-A2.7B{}", "-Chat"),
    "Qwen/Qwen1.5-MoE-A2.7B",
    "Qwen/Qwen2-57B-A14B",
    "Qwen/Qwen2-57B-A14B-Instruct",
)
_QWEN3 = (
    *sizes("Qwen/Qwen3-{}", "0.6B 1.7B 4B 8B 14B 32B"),
    *sizes("Qwen/Qwen3-{}-Base", "0.6B 1.7B 4B 8B 14B"),
)
_QWEN3_MOE = ("Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-30B-A3B-Base", "Qwen/Qwen3-235B-A22B")
_QWEN3_MOE_INSTRUCT = (
    "Qwen/Qwen3-30B-A3B-Instruct-2507",
    "Qwen/Qwen3-235B-A22B-Instruct-2507",
)
_QWEN3_MOE_CODER = ("Qwen/Qwen3-Coder-30B-A3B-Instruct", "Qwen/Qwen3-Coder-480B-A35B-Instruct")
_LLAMA2 = (*sizes("meta-llama/Llama-2-{}-hf", "7b 13b 70b"), *sizes("meta-llama/Llama-2-{}-chat-hf", "7b 13b 70b"))
_LLAMA2_MODELSCOPE = (
    *sizes("modelscope/Llama-2-{}-ms", "7b 13b 70b"),
    *sizes("modelscope/Llama-2-{}-chat-ms", "7b 13b 70b"),
)
_LLAMA3 = (
    *sizes("meta-llama/Meta-Llama-3-{}", "8B 70B"),
    *sizes("meta-llama/Meta-Llama-3-{}-Instruct", "8B 70B"),
)
_LLAMA3_2 = (
    *sizes("meta-llama/Meta-Llama-3.1-{}", "8B 70B 405B"),
    *sizes("meta-llama/Meta-Llama-3.1-{}-Instruct", "8B 70B 405B"),
    *sizes("meta-llama/Llama-3.2-{}", "1B 3B"),
    *sizes("meta-llama/Llama-3.2-{}-Instruct", "1B 3B"),
    "meta-llama/Llama-3.3-70B-Instruct",
)
_SMOLLM2 = (
    *sizes("HuggingFaceTB/SmolLM2-{}", "135M 360M 1.7B"),
    *sizes("HuggingFaceTB/SmolLM2-{}-Instruct", "135M 360M 1.7B"),
)
_YI = (*sizes("01-ai/Yi-{}", "6B 9B 34B"), *sizes("01-ai/Yi-{}-Chat", "6B 34B"))
_YI_1_5 = (*sizes("01-ai/Yi-1.5-{}", "6B 9B 34B"), *sizes("01-ai/Yi-1.5-{}-Chat", "6B 9B 34B"))
_MISTRAL_V1 = ("mistralai/Mistral-7B-v0.1", *sizes("mistralai/Mistral-7B-Instruct-{}", "v0.1 v0.2"))
_MISTRAL_NEMO = ("mistralai/Mistral-Nemo-Base-2407", "mistralai/Mistral-Nemo-Instruct-2407")
_MIXTRAL = ("mistralai/Mixtral-8x7B-v0.1", "mistralai/Mixtral-8x7B-Instruct-v0.1")
_GEMMA = ("google/gemma-2b", "google/gemma-2b-it", "google/gemma-7b", "google/gemma-7b-it")
_GEMMA2 = (*sizes("google/gemma-2-{}", "2b 9b 27b"), *sizes("google/gemma-2-{}-it", "2b 9b 27b"))
_GEMMA3 = ("google/gemma-3-270m", "google/gemma-3-270m-it", "google/gemma-3-1b-pt", "google/gemma-3-1b-it")
_PHI3 = (
    *sizes("microsoft/Phi-3-mini-{}-instruct", "4k 128k"),
    *sizes("microsoft/Phi-3-medium-{}-instruct", "4k 128k"),
    "microsoft/Phi-3.5-mini-instruct",
)
_GLM4 = (*sizes("zai-org/GLM-4-{}-0414", "9B 32B"), "zai-org/GLM-4-32B-Base-0414")
_GLM4_5 = (
    "zai-org/GLM-4.5-Air",
    "zai-org/GLM-4.5-Air-Base",
    "zai-org/GLM-4.5",
    "zai-org/GLM-4.5-Base",
    "zai-org/GLM-4.6",
)
_DEEPSEEK_V2 = (
    "deepseek-ai/DeepSeek-V2-Lite",
    "deepseek-ai/DeepSeek-V2-Lite-Chat",
    "deepseek-ai/DeepSeek-V2",
    "deepseek-ai/DeepSeek-V2-Chat",
)
_DEEPSEEK_V3 = ("deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-V3-Base", "deepseek-ai/DeepSeek-V3-0324")
_DEEPSEEK_R1 = ("deepseek-ai/DeepSeek-R1", "deepseek-ai/DeepSeek-R1-Zero", "deepseek-ai/DeepSeek-R1-0528")
_R1_QWEN = sizes("deepseek-ai/DeepSeek-R1-Distill-Qwen-{}", "1.5B 7B 14B 32B")
_R1_LLAMA = sizes("deepseek-ai/DeepSeek-R1-Distill-Llama-{}", "8B 70B")
_MOONLIGHT = ("moonshotai/Moonlight-16B-A3B", "moonshotai/Moonlight-16B-A3B-Instruct")
_KIMI_K2 = ("moonshotai/Kimi-K2-Base", "moonshotai/Kimi-K2-Instruct", "moonshotai/Kimi-K2-Instruct-0905")
_INTERNLM2 = (
    *sizes("internlm/internlm2-{}", "1_8b 7b 20b"),
    *sizes("internlm/internlm2-chat-{}", "1_8b 7b 20b"),
    *sizes("internlm/internlm2_5-{}", "1_8b 7b 20b"),
    *sizes("internlm/internlm2_5-{}-chat", "1_8b 7b 20b"),
)
_BAICHUAN2 = (*sizes("baichuan-inc/Baichuan2-{}-Base", "7B 13B"), *sizes("baichuan-inc/Baichuan2-{}-Chat", "7B 13B"))
_MINICPM = ("openbmb/MiniCPM-2B-sft-fp32", "openbmb/MiniCPM-2B-dpo-fp32", "openbmb/MiniCPM-1B-sft-bf16")
_GRANITE = (
    *sizes("ibm-granite/granite-3.1-{}-instruct", "2b 8b"),
    *sizes("ibm-granite/granite-3.3-{}-base", "2b 8b"),
    *sizes("ibm-granite/granite-3.3-{}-instruct", "2b 8b"),
)
_OLMO2 = (
    *sizes("allenai/OLMo-2-1124-{}", "7B 13B 7B-Instruct 13B-Instruct"),
    *sizes("allenai/OLMo-2-{}", "0425-1B 0425-1B-Instruct 0325-32B 0325-32B-Instruct"),
)
_OLMOE = sizes("allenai/OLMoE-1B-7B-{}", "0125 0125-Instruct 0924 0924-Instruct")
_OLMO3 = sizes("allenai/Olmo-3-{}", "1025-7B 7B-Instruct 7B-Think 1125-32B 32B-Think")
_EXAONE = sizes("LGAI-EXAONE/EXAONE-3.5-{}-Instruct", "2.4B 7.8B 32B")
_ERNIE = sizes("baidu/ERNIE-4.5-0.3B-{}", "PT Base-PT")
_ERNIE_MOE = (
    *sizes("baidu/ERNIE-4.5-21B-A3B-{}", "PT Base-PT"),
    *sizes("baidu/ERNIE-4.5-300B-A47B-{}", "PT Base-PT"),
)
_MAMBA = sizes("state-spaces/mamba-{}-hf", "130m 370m 790m 1.4b 2.8b")
_MINIMAX = ("MiniMaxAI/MiniMax-M2", "MiniMaxAI/MiniMax-M2.1")

MODEL_TYPES = {
    found.name: found
    for found in (
        ModelType("qwen", "qwen", "qwen", sizes("Qwen/Qwen-{}-Chat", "1_8B 7B 14B 72B"), own_code=True),
        ModelType("qwen2", "qwen2", "qwen2", _QWEN2, _QWEN2),
        ModelType("qwen2_5", "qwen2", "qwen2_5", _QWEN2_5, _QWEN2_5),
        ModelType("qwen2_moe", "qwen2_moe", "qwen2", _QWEN2_MOE, _QWEN2_MOE),
        ModelType("qwen3", "qwen3", "qwen3", _QWEN3, _QWEN3),
        ModelType("qwen3_instruct", "qwen3", "qwen3_instruct", ("Qwen/Qwen3-4B-Instruct-2507",)),
        ModelType("qwen3_moe", "qwen3_moe", "qwen3", _QWEN3_MOE, _QWEN3_MOE),
        ModelType("qwen3_moe_instruct", "qwen3_moe", "qwen3_instruct", _QWEN3_MOE_INSTRUCT, _QWEN3_MOE_INSTRUCT),
        ModelType("qwen3_coder", "qwen3_moe", None, _QWEN3_MOE_CODER, _QWEN3_MOE_CODER),
        ModelType("qwen3_next", "qwen3_next", "qwen3_instruct", ("Qwen/Qwen3-Next-80B-A3B-Instruct",)),
        ModelType("llama2", "llama", "llama2", _LLAMA2, _LLAMA2_MODELSCOPE, (32000,)),
        ModelType("vicuna", "llama", "vicuna", sizes("lmsys/vicuna-{}-v1.5", "7b 13b"), vocab_sizes=(32000,)),
        ModelType("llama3", "llama", "llama3", _LLAMA3, of("LLM-Research", _LLAMA3), (128256,), "default"),
        ModelType("llama3_2", "llama", "llama3_2", _LLAMA3_2, of("LLM-Research", _LLAMA3_2), (128256,), "llama3"),
        ModelType(
            "llama4",
            "llama4_text",
            "llama4",
            ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "meta-llama/Llama-4-Maverick-17B-128E-Instruct"),
        ),
        ModelType("smollm2", "llama", "smollm2", _SMOLLM2, vocab_sizes=(49152,)),
        ModelType("yi", "llama", "yi", _YI, of("01ai", _YI), (64000,)),
        ModelType("yi_1_5", "llama", None, _YI_1_5, of("01ai", _YI_1_5), (64000,)),
        ModelType("mistral_v1", "mistral", "mistral_v1", _MISTRAL_V1, of("AI-ModelScope", _MISTRAL_V1), (32000,)),
        ModelType(
            "mistral_v3",
            "mistral",
            "mistral_v3",
            ("mistralai/Mistral-7B-Instruct-v0.3",),
            ("LLM-Research/Mistral-7B-Instruct-v0.3",),
            (32768,),
        ),
        ModelType(
            "mistral_nemo", "mistral", "mistral_nemo", _MISTRAL_NEMO, of("AI-ModelScope", _MISTRAL_NEMO), (131072,)
        ),
        ModelType("mistral_v7", "mistral", "mistral_v7", ("mistralai/Mistral-Large-Instruct-2411",), (), (32768,)),
        ModelType(
            "mistral_v7_tekken",
            "mistral",
            "mistral_v7_tekken",
            ("mistralai/Mistral-Small-24B-Instruct-2501", "mistralai/Mistral-Small-24B-Base-2501"),
            vocab_sizes=(131072,),
        ),
        ModelType(
            "zephyr",
            "mistral",
            "zephyr",
            ("HuggingFaceH4/zephyr-7b-beta",),
            ("modelscope/zephyr-7b-beta",),
            (32000,),
        ),
        ModelType(
            "ministral",
            "ministral",
            "mistral_nemo",
            ("mistralai/Ministral-8B-Instruct-2410",),
            ("AI-ModelScope/Ministral-8B-Instruct-2410",),
        ),
        ModelType("ministral3", "ministral3", None, sizes("mistralai/Ministral-3-{}-Base-2512", "3B 8B 14B")),
        ModelType("mixtral", "mixtral", "mixtral", _MIXTRAL, of("AI-ModelScope", _MIXTRAL), (32000,)),
        ModelType("gemma", "gemma", "gemma", _GEMMA, of("AI-ModelScope", _GEMMA)),
        ModelType("gemma2", "gemma2", "gemma2", _GEMMA2, of("LLM-Research", _GEMMA2)),
        ModelType("gemma3", "gemma3_text", "gemma3", _GEMMA3),
        ModelType("phi3", "phi3", "phi3", _PHI3, of("LLM-Research", _PHI3), (32064,)),
        ModelType("phi4", "phi3", "phi4", ("microsoft/phi-4",), ("LLM-Research/phi-4",), (100352,)),
        ModelType(
            "phi4_mini",
            "phi3",
            "phi4_mini",
            ("microsoft/Phi-4-mini-instruct",),
            ("LLM-Research/Phi-4-mini-instruct",),
            (200064,),
        ),
        ModelType("glm4", "glm4", "glm4", _GLM4, of("ZhipuAI", _GLM4)),
        ModelType("glm4_5", "glm4_moe", "glm4_5", _GLM4_5, of("ZhipuAI", _GLM4_5)),
        ModelType("deepseek_v2", "deepseek_v2", "deepseek_v2", _DEEPSEEK_V2, _DEEPSEEK_V2),
        ModelType("deepseek_v3", "deepseek_v3", "deepseek_v3", _DEEPSEEK_V3, _DEEPSEEK_V3, (129280,)),
        ModelType("deepseek_r1", "deepseek_v3", "deepseek_r1", _DEEPSEEK_R1, _DEEPSEEK_R1, (129280,)),
        ModelType("deepseek_r1_qwen", "qwen2", "deepseek_r1", _R1_QWEN, _R1_QWEN),
        ModelType("deepseek_r1_llama", "llama", "deepseek_r1", _R1_LLAMA, _R1_LLAMA, (128256,)),
        ModelType("moonlight", "deepseek_v3", "kimi", _MOONLIGHT, _MOONLIGHT, (163840,)),
        ModelType("kimi_k2", "kimi_k2", "kimi", _KIMI_K2, _KIMI_K2, own_code=True),
        ModelType(
            "gpt_oss",
            "gpt_oss",
            "gpt_oss",
            sizes("openai/gpt-oss-{}", "20b 120b"),
            sizes("openai-mirror/gpt-oss-{}", "20b 120b"),
        ),
        ModelType(
            "internlm2", "internlm2", "internlm2", _INTERNLM2, of("Shanghai_AI_Laboratory", _INTERNLM2), own_code=True
        ),
        ModelType(
            "internlm3",
            "internlm3",
            "internlm3",
            ("internlm/internlm3-8b-instruct",),
            ("Shanghai_AI_Laboratory/internlm3-8b-instruct",),
            own_code=True,
        ),
        ModelType("baichuan2", "baichuan", "baichuan", _BAICHUAN2, _BAICHUAN2, own_code=True),
        ModelType("minicpm", "minicpm", "minicpm", _MINICPM, of("OpenBMB", _MINICPM), own_code=True),
        ModelType("granite", "granite", "granite", _GRANITE),
        ModelType("olmo2", "olmo2", "olmo", _OLMO2),
        ModelType("olmoe", "olmoe", "olmo", _OLMOE),
        ModelType("olmo3", "olmo3", None, _OLMO3),
        ModelType("exaone3", "exaone", "exaone", _EXAONE, own_code=True),
        ModelType("exaone4", "exaone4", None, sizes("LGAI-EXAONE/EXAONE-4.0-{}", "1.2B 32B")),
        ModelType("ernie4_5", "ernie4_5", None, _ERNIE, of("PaddlePaddle", _ERNIE)),
        ModelType("ernie4_5_moe", "ernie4_5_moe", None, _ERNIE_MOE, of("PaddlePaddle", _ERNIE_MOE)),
        ModelType("minimax_m2", "minimax_m2", None, _MINIMAX, of("MiniMax", _MINIMAX)),
        ModelType("nemotron", "nemotron", None, sizes("nvidia/Minitron-{}-Base", "4B 8B")),
        ModelType(
            "nemotron_h",
            "nemotron_h",
            None,
            sizes("nvidia/NVIDIA-Nemotron-Nano-{}-v2", "9B 12B"),
        ),
        ModelType("nemotron3", "nemotron_h", "nemotron3", ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",)),
        ModelType("mamba", "mamba", None, _MAMBA, of("AI-ModelScope", _MAMBA)),
        ModelType("mamba2", "mamba2", None, ("mistralai/Mamba-Codestral-7B-v0.1",)),
    )
}
"""By name. Of several that share a `model_type`, what tells them apart is in the type, or in the tokenizer."""

_BY_ID = {
    prefix + one.lower(): found
    for found in MODEL_TYPES.values()
    for prefix, ids in (("", found.ids), (MODELSCOPE, found.modelscope))
    for one in ids
}


def of_id(name: str) -> ModelType | None:
    """The type of a model named by its id, on ModelScope with `ms::`; None where it is not registered."""
    return _BY_ID.get(name.removeprefix(HUGGING_FACE).lower())


def of_config(config: dict[str, Any]) -> list[ModelType]:
    """Every type that a config.json may be."""
    return [found for found in MODEL_TYPES.values() if found.fits(config)]
