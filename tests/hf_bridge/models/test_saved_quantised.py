"""Folders with GPTQ's and AWQ's weights load, and LoRA trains beside them. Run by `make test-quantised`.

gptqmodel asks for a torch of its own, so it is in an environment of its own, too.
"""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from hf_bridge.models.linear import linear_names
from hf_bridge.models.load import load_model

if importlib.util.find_spec("gptqmodel") is None:
    pytest.skip("gptqmodel is not installed; see `make test-quantised`", allow_module_level=True)

# With two cores it gives itself one worker and then asks for two.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

TEXTS = ["In the beginning God created the heaven and the earth. " * 20] * 8
TOKENS = torch.arange(20)[None]


@pytest.fixture(scope="module", params=["gptq", "awq"])
def quantised(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of two layers, quantised by gptqmodel itself. AWQ takes groups of at least 64 inputs."""
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.quantization import FORMAT, METHOD
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.support.newcomer import tiny_model

    plain = tiny_model(tmp_path_factory.mktemp("plain") / "model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=300, eos_token_id=0, **sizes)).save_pretrained(plain)
    made = tmp_path_factory.mktemp(request.param)
    monkeypatch = pytest.MonkeyPatch()
    request.addfinalizer(monkeypatch.undo)
    monkeypatch.chdir(made)  # where it leaves logs
    how = {"method": METHOD.AWQ, "format": FORMAT.GEMM} if request.param == "awq" else {}
    model = GPTQModel.load(str(plain), QuantizeConfig(bits=4, group_size=64, **how), device="cpu")
    model.quantize(TEXTS, batch_size=1)
    model.save(str(made))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(plain / name, made)
    return made


def test_lora_trains_beside_it(quantised: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = load_model(str(quantised)).model
    targets = linear_names(model)
    assert len(targets) == 14 and type(model.lm_head) is torch.nn.Linear
    layer, x = model.get_submodule(targets[0]), torch.randn(3, 128)
    with torch.no_grad():
        weight = layer(torch.eye(128))  # [in, out]: what the layer stands for
        torch.testing.assert_close(layer(x), F.linear(x, weight.T), atol=1e-3, rtol=1e-3)
    tuned = get_peft_model(model, LoraConfig(target_modules=targets, r=4, task_type="CAUSAL_LM"))
    trained = {name: parameter for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    assert all("lora" in name for name in trained)
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    losses = []
    for step in range(5):
        loss = tuned(TOKENS, labels=TOKENS).loss
        loss.backward()
        if step == 0:
            assert all(p.grad.abs().sum() > 0 for name, p in trained.items() if "lora_B" in name)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.5
