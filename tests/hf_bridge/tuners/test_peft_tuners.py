"""What every tuner of PEFT has to do, on a tiny llama."""

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from hf_bridge.tuners.tuned import from_pretrained, prepare_model
from swift_mega.base.errors import UserError
from tests.hf_bridge.tuners.trained import OF_PEFT, PROMPTS, config_of, logits, move, tuned_with

MERGED = [kind for kind in OF_PEFT if kind not in PROMPTS]


@pytest.mark.parametrize("kind", OF_PEFT)
def test_only_its_parameters_train_and_detach_gives_the_model_back(kind: str, llama: Any, ids: torch.Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    trained_before = [parameter.requires_grad for parameter in llama.parameters()]
    tuned = prepare_model(llama, {"mine": config_of(kind)})
    own = {id(parameter) for parameter in tuned.attached["mine"].parameters().values()}
    start = {id(one): one.detach().clone() for one in tuned.model.parameters()}

    model: Any = tuned.model
    model.train()
    with torch.random.fork_rng():
        model(input_ids=ids, labels=ids).loss.backward()
    optimizer = torch.optim.SGD(tuned.parameter_groups(lr=1.0, weight_decay=0.0), lr=1.0)
    optimizer.step()
    with_gradient = {id(one) for one in model.parameters() if one.grad is not None and one.grad.abs().sum() > 0}
    moved = {id(one) for one in model.parameters() if not torch.equal(one, start[id(one)])}

    assert with_gradient and with_gradient <= own
    assert moved and moved <= own
    assert tuned.trainable.count == sum(one.numel() for one in tuned.attached["mine"].parameters().values())
    tuned.detach()
    assert llama.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in llama.state_dict().items())
    assert [parameter.requires_grad for parameter in llama.parameters()] == trained_before


def same(kind: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal; those that PEFT subtracts from the weights are sums in another order."""
    if kind in ("pissa", "olora"):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", OF_PEFT)
def test_a_saved_one_is_a_peft_folder(kind: str, llama: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    tuned = tuned_with(copy.deepcopy(llama), mine=kind)
    tuned.activate("mine")
    expected = logits(tuned, ids)
    assert not torch.equal(expected[:, -16:], logits(llama, ids))
    tuned.save_pretrained(tmp_path)

    here = from_pretrained(copy.deepcopy(llama), tmp_path)
    assert here.active == ["mine"]
    same(kind, logits(here, ids), expected)
    assert here.trainable.count == 0

    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(llama), tmp_path)
    same(kind, logits(theirs, ids), expected)


@pytest.mark.parametrize("kind", OF_PEFT)
def test_one_that_peft_saved_is_read(kind: str, llama: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    theirs = peft.get_peft_model(
        copy.deepcopy(llama), config_of("lora" if kind == "lora+" else kind, task_type="CAUSAL_LM")
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    theirs.eval().save_pretrained(tmp_path)

    here = from_pretrained(copy.deepcopy(llama), tmp_path)
    assert here.active == ["default"]
    same(kind, logits(here, ids), logits(theirs, ids))


def test_single_tokens_of_the_embedding(llama: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    """PEFT's trainable_token_indices, which wraps the embedding beside LoRA."""
    tuned = prepare_model(
        copy.deepcopy(llama), {"mine": config_of("lora", trainable_token_indices=ids[0, :4].tolist())}
    )
    move(tuned, "mine")
    assert any("trainable_tokens" in name for name in tuned.attached["mine"].parameters())
    tuned.save_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(llama), tmp_path)
    assert torch.equal(logits(tuned, ids), logits(theirs, ids))
    torch.testing.assert_close(logits(tuned.merged().model, ids), logits(tuned, ids), rtol=0, atol=1e-4)
    with tuned.using():
        assert torch.equal(logits(tuned, ids), logits(llama, ids))
    assert torch.equal(logits(tuned.detach(), ids), logits(llama, ids))


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_what_is_subtracted_lies_beside_the_weights(kind: str, llama: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    plain = copy.deepcopy(llama)
    options = {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "lora_dropout": 0.0}
    tuned = prepare_model(llama, {"mine": config_of(kind, **options)})
    torch.testing.assert_close(logits(tuned, ids), logits(plain, ids), rtol=1e-4, atol=1e-3)
    theirs = peft.get_peft_model(copy.deepcopy(plain), config_of(kind, **options))
    for model in (tuned.model, theirs):  # the same step from the same beginning
        model.train()(input_ids=ids, labels=ids).loss.backward()
        torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.01).step()
        model.eval()
    torch.testing.assert_close(logits(tuned, ids), logits(theirs, ids), rtol=1e-4, atol=1e-3)
    assert not torch.allclose(logits(tuned, ids), logits(plain, ids), atol=1e-2)
    with tuned.using():
        assert torch.equal(logits(tuned, ids), logits(plain, ids))

    tuned.save_pretrained(tmp_path)
    again = prepare_model(plain, {"mine": config_of(kind, **options)})
    move(again, "mine")
    again.load(tmp_path)
    assert torch.equal(logits(again, ids), logits(tuned, ids))


@pytest.mark.parametrize("kind", MERGED)
def test_merged_it_computes_the_same(kind: str, llama: Any, ids: torch.Tensor) -> None:
    tuned = tuned_with(llama, mine=kind)
    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    merged = tuned.merged("mine")
    assert all(torch.equal(tensor, before[name]) for name, tensor in llama.state_dict().items())
    assert not any(isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer) for module in merged.model.modules())
    with tuned.using("mine"):
        # fp32: the sum of two products against the product with the rounded sum.
        torch.testing.assert_close(logits(merged.model, ids), logits(tuned, ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", PROMPTS)
def test_virtual_tokens_are_in_no_weight(kind: str, llama: Any) -> None:
    with pytest.raises(UserError, match="its virtual tokens go before every input"):
        tuned_with(llama, mine=kind).merged("mine")


def test_transformers_reads_a_folder(llama: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    tuned = tuned_with(copy.deepcopy(llama), mine="lora")
    tuned.save_pretrained(tmp_path)
    theirs = copy.deepcopy(llama)
    theirs.load_adapter(str(tmp_path))
    with tuned.using("mine"):
        assert torch.equal(logits(theirs, ids), logits(tuned, ids))


def test_any_module_will_do(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(3, 8)
    before = plain(x)
    tuned = prepare_model(plain, {"small": peft.LoraConfig(r=2, target_modules=["0", "2"])})
    move(tuned, "small")
    lora = plain[0]
    assert isinstance(lora, peft.tuners.lora.Linear)
    a, b = lora.lora_A["small"].weight, lora.lora_B["small"].weight
    torch.testing.assert_close(lora(x), lora.base_layer(x) + 8 / 2 * x @ a.T @ b.T)
    expected = tuned(x)
    tuned.save_pretrained(tmp_path)
    with tuned.using():
        assert torch.equal(tuned(x), before)
    assert torch.equal(tuned.detach()(x), before)
    assert torch.equal(from_pretrained(plain, tmp_path)(x), expected)


def test_lora_plus_rates(llama: Any) -> None:
    """η_B = λ·η_A, as PEFT's own optimizer for it has them."""
    tuned = prepare_model(llama, {"mine": config_of("lora+", loraplus_lr_ratio=4.0)})
    rates = {id(one): group["lr"] for group in tuned.parameter_groups(1e-3, 0.1) for one in group["params"]}
    from peft.optimizers import create_loraplus_optimizer

    theirs = create_loraplus_optimizer(tuned.model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=4.0)
    assert rates == {id(one): group["lr"] for group in theirs.param_groups for one in group["params"]}
    assert {rates[id(one)] for name, one in llama.named_parameters() if "lora_B" in name} == {4e-3}


def test_adalora_moves_rank_while_it_trains(llama: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    plain, other = copy.deepcopy(llama), copy.deepcopy(llama)
    config = config_of("adalora", init_r=4, target_r=2, tinit=1, tfinal=1, deltaT=1)
    tuned = prepare_model(llama, {"default": config})
    rows = [{"input_ids": row, "labels": row} for row in ids] * 5
    arguments = TrainingArguments(
        str(tmp_path / "run"), max_steps=5, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True
    )
    Trainer(tuned.model, arguments, train_dataset=rows, callbacks=tuned.callbacks()).train()
    own: Any = tuned.attached["default"]
    pattern = own.peft_config.rank_pattern
    assert sum(sum(kept) for kept in pattern.values()) == 2 * len(pattern)
    masked = sum(int((one == 0).sum()) for name, one in llama.named_parameters() if "lora_E" in name)
    assert masked == 2 * len(pattern)

    llama.eval()
    tuned.save_pretrained(tmp_path / "saved")
    for read in (from_pretrained, peft.PeftModel.from_pretrained):
        found = logits(read(copy.deepcopy(plain), tmp_path / "saved"), ids)
        torch.testing.assert_close(found, logits(tuned, ids), rtol=0, atol=1e-5)  # without the ranks that are zero
    again = prepare_model(other, {"default": config})
    again.load(tmp_path / "saved")
    its: Any = again.attached["default"]
    assert torch.equal(logits(again, ids), logits(tuned, ids))
    assert its.peft_config.rank_pattern == own.peft_config.rank_pattern
    ours, theirs = (one.host.base_model.rankallocator.exp_avg_ipt for one in (own, its))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", [*PROMPTS, "adalora"])
def test_training_goes_on_where_it_was(kind: str, llama: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    """PEFT saves what an encoder computes; going on takes the encoder."""
    options = {"prefix_projection": True, "encoder_hidden_size": 8} if kind == "prefix" else {}
    tuned = prepare_model(copy.deepcopy(llama), {"mine": config_of(kind, **options)})
    move(tuned, "mine")
    tuned.save_pretrained(tmp_path)
    again = prepare_model(copy.deepcopy(llama), {"mine": config_of(kind, **options)})
    again.load(tmp_path)
    loaded = from_pretrained(copy.deepcopy(llama), tmp_path, trainable=True)
    for other in (again, loaded):
        assert torch.equal(logits(other, ids), logits(tuned, ids))
        own, its = tuned.attached["mine"].parameters(), other.attached["mine"].parameters()
        assert own.keys() == its.keys() and all(torch.equal(own[name], its[name]) for name in own)
        assert all(parameter.requires_grad for parameter in its.values())


def test_loftq_says_what_it_needs(llama: Any) -> None:
    pytest.importorskip("scipy")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="on a GPU, and there is none"):
        prepare_model(llama, {"mine": config_of("loftq")})
    assert not any("lora" in name for name, _ in llama.named_modules())


def test_all_linear_on_mamba_leaves_out_what_its_kernels_do_not_call(ids: torch.Tensor) -> None:
    from transformers import Mamba2Config, Mamba2ForCausalLM

    model = Mamba2ForCausalLM(
        Mamba2Config(
            vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8, num_heads=4, head_dim=16, n_groups=1
        )
    ).eval()
    before = logits(model, ids % 64)
    tuned = tuned_with(model, mine="lora")
    tuned.activate("mine")
    attached: Any = tuned.attached["mine"]
    assert {name.rpartition(".")[2] for name in attached.peft_config.target_modules} == {"in_proj"}
    assert not torch.equal(logits(tuned, ids % 64), before)
    tuned.detach()
    assert torch.equal(logits(model, ids % 64), before)


def test_lora_on_a_quantised_model(tiny_model: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    import bitsandbytes.functional as bnb
    from transformers import BitsAndBytesConfig

    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), quantization_config=quantised).eval()
    tuned = tuned_with(model, mine="lora")
    layer: Any = model.model.layers[0].self_attn.q_proj
    hidden = torch.randn(2, 32)
    weight = bnb.dequantize_4bit(layer.base_layer.weight.data, layer.base_layer.weight.quant_state)
    a, b = layer.lora_A["mine"].weight, layer.lora_B["mine"].weight
    with tuned.using("mine"):
        torch.testing.assert_close(layer(hidden), hidden @ weight.T + 4.0 * hidden @ a.T @ b.T, rtol=1e-5, atol=1e-5)
        expected = logits(tuned, ids)
    tuned.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is quantised"):
        tuned.merged("mine")
    tuned.detach()
    again = from_pretrained(model, tmp_path, active=["mine"])
    assert torch.equal(logits(again, ids), expected)
