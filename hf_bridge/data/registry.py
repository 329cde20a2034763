"""Data sets by a short name: the ones that the SWIFT paper lists in its Table 13, and more. All of it is data.

`needs` says what a mapping of columns cannot do; such a data set has to be written as rows first. Ids, subsets and
splits are as the hubs had them when the list was made; nothing here asks a hub. Torch-free.
"""

from dataclasses import dataclass, field
from typing import Literal

from swift_mega.base.errors import UserError, nearest

Hub = Literal["hf", "ms"]


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One data set.

    Attributes:
        hf, ms: its id on Hugging Face and on ModelScope; None: it is not there.
        subset, split: what is read where nothing else is asked for.
        columns: theirs → ours, of those that are not recognised by themselves.
        needs: why its rows cannot be read as they are; None: they can.
        self_cognition: its rows leave open who the model is.
    """

    hf: str | None = None
    ms: str | None = None
    subset: str | None = None
    split: str = "train"
    columns: dict[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    needs: str | None = None
    self_cognition: bool = False

    def id(self, hub: Hub | None, name: str) -> tuple[Hub, str]:
        """Where to get it: on the hub that is asked for, or on Hugging Face where it is there.

        Raises:
            UserError: it is not on that hub, or its rows cannot be read as they are.
        """
        if self.needs:
            raise UserError(
                f"the rows of `{name}` cannot be read as they are: {self.needs}.",
                "Write them as JSONL with `messages` (and `images`, `audios`), and give that file.",
            )
        ids: dict[Hub, str | None] = {"hf": self.hf, "ms": self.ms}
        for there in [hub] if hub else ids:
            found = ids[there]
            if found is not None:
                return there, found
        other = "ms" if hub == "hf" else "hf"
        raise UserError(f"`{name}` is not on the hub `{hub}::`.", f"Take it from `{other}::{name}`.")


VQA = ("vision", "vqa", "en")
ANSWERS = "the answer is one of a list, or a field of another column"

DATA_SETS = {
    "alpaca-en": DataSet(hf="vicgalle/alpaca-gpt4", ms="AI-ModelScope/alpaca-gpt4-data-en", tags=("qa", "en")),
    "synthetic-text-to-sql": DataSet(
        hf="gretelai/synthetic_text_to_sql",
        ms="AI-ModelScope/synthetic_text_to_sql",
        columns={"sql_prompt": "instruction", "sql_context": "input", "sql": "output"},
        tags=("sql", "en"),
    ),
    "firefly-train-1.1M": DataSet(
        hf="YeungNLP/firefly-train-1.1M",
        ms="AI-ModelScope/firefly-train-1.1M",
        columns={"input": "query", "target": "response"},
        tags=("qa", "zh"),
    ),
    "deepctrl-sft": DataSet(ms="deepctrl/deepctrl-sft-data", subset="default", tags=("qa", "zh")),
    "ruozhiba": DataSet(
        ms="AI-ModelScope/ruozhiba",
        subset="post-annual",
        tags=("qa", "zh"),
        needs="a row is the text of one post, with its number before it and no answer",
    ),
    "ms-agent": DataSet(ms="iic/ms_agent", tags=("agent", "zh")),
    "ms-agent-pro": DataSet(ms="iic/MSAgent-Pro", tags=("agent", "en")),
    "chinese-c4": DataSet(hf="shjwudp/chinese-c4", ms="swift/chinese-c4", tags=("pretrain", "zh")),
    "fineweb": DataSet(hf="HuggingFaceFW/fineweb", subset="sample-10BT", tags=("pretrain", "en")),
    "okvqa": DataSet(hf="Multimodal-Fatima/OK-VQA_train", ms="swift/OK-VQA_train", tags=VQA, needs=ANSWERS),
    "a-okvqa": DataSet(hf="HuggingFaceM4/A-OKVQA", ms="swift/A-OKVQA", tags=VQA, needs=ANSWERS),
    "chart-qa": DataSet(hf="HuggingFaceM4/ChartQA", ms="swift/ChartQA", tags=VQA, needs=ANSWERS),
    "ocr-vqa": DataSet(
        hf="howard-hou/OCR-VQA", ms="swift/OCR-VQA", tags=("vision", "ocr", "en"), needs="a row has many questions"
    ),
    "llava-pretrain": DataSet(
        hf="liuhaotian/LLaVA-Pretrain",
        ms="AI-ModelScope/LLaVA-Pretrain",
        tags=VQA,
        needs="its images lie in an archive of their own",
    ),
    "llava-instruct-150k": DataSet(
        hf="liuhaotian/LLaVA-Instruct-150K",
        ms="AI-ModelScope/LLaVA-Instruct-150K",
        tags=VQA,
        needs="its images are those of COCO, and lie elsewhere",
    ),
    "mantis-instruct": DataSet(
        hf="TIGER-Lab/Mantis-Instruct",
        ms="swift/Mantis-Instruct",
        subset="nlvr2",
        tags=VQA,
        needs="its images lie in archives of their own",
    ),
    "grit": DataSet(
        hf="zzliang/GRIT", ms="swift/GRIT", tags=VQA, needs="its boxes are shares of the image, beside spans of text"
    ),
    "science-qa": DataSet(
        hf="derek-thomas/ScienceQA", ms="swift/ScienceQA", tags=VQA, needs="the answer is the number of a choice"
    ),
    "refcoco": DataSet(
        hf="jxu124/refcoco", ms="swift/refcoco", tags=("vision", "grounding", "en"), needs="questions have to be made"
    ),
    "refcocog": DataSet(
        hf="jxu124/refcocog", ms="swift/refcocog", tags=("vision", "grounding", "en"), needs="questions have to be made"
    ),
    "rlaif-v": DataSet(hf="openbmb/RLAIF-V-Dataset", ms="swift/RLAIF-V-Dataset", tags=("vision", "rlhf", "en")),
    "aishell1-zh-mini": DataSet(
        ms="speech_asr/speech_asr_aishell1_trainsets",
        subset="validation",
        tags=("audio", "qa", "zh"),
        needs="a row is a recording and its transcript, without a question",
    ),
    "self-cognition": DataSet(
        hf="modelscope/self-cognition", ms="swift/self-cognition", tags=("chat", "zh", "en"), self_cognition=True
    ),
    "hh-rlhf": DataSet(hf="Anthropic/hh-rlhf", ms="AI-ModelScope/hh-rlhf", tags=("rlhf", "en")),
    "ultrafeedback-binarized": DataSet(
        hf="HuggingFaceH4/ultrafeedback_binarized", split="train_prefs", tags=("rlhf", "en")
    ),
    "gsm8k": DataSet(hf="openai/gsm8k", ms="modelscope/gsm8k", subset="main", tags=("math", "en")),
    "dolly-15k": DataSet(hf="databricks/databricks-dolly-15k", tags=("qa", "en")),
    "slim-orca": DataSet(hf="Open-Orca/SlimOrca", ms="swift/SlimOrca", tags=("qa", "en")),
}
"""Name → what it is. Up to `aishell1-zh-mini` the paper's Table 13."""


def data_set(name: str) -> DataSet:
    """The data set of that name.

    Raises:
        UserError: there is none, with the nearest name.
    """
    if name not in DATA_SETS:
        raise UserError(
            f"`{name}` is no file, no `org/name` and no name of a known data set.", nearest(name, DATA_SETS)
        )
    return DATA_SETS[name]
