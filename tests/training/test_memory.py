"""How many pairs go through the model at once: forecast, and halved where memory runs out."""

import json
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from cai.core.errors import UserError
from cai.models.model import free_memory, import_unsloth
from cai.models.registry import REGISTRY, with_values
from cai.training import dpo, memory
from cai.training.settings import Settings
from quick import HELD, QUICK, TRAIN, new, rows_of

LARGE = REGISTRY["Qwen/Qwen2.5-32B"]
SHAPE = SimpleNamespace(hidden_size=5120, intermediate_size=27648, vocab_size=152064)
ADAPTER = 268_435_456  # weights of rank 32


def needed(batch_size, longest, loss="dpo"):
    settings = Settings.of(LARGE, steps=1, loss=loss)
    return memory.training_gb(SHAPE, ADAPTER, settings, batch_size, longest)


def test_four_pairs_of_full_length_fit_beside_the_32b_on_80_gb_and_orpo_keeps_its_logits():
    free = 85 - LARGE.memory_gb(4)
    assert needed(4, 4096) < memory.SHARE * free < needed(8, 4096) + needed(4, 4096)
    assert needed(4, 4096, "orpo") > memory.SHARE * free > needed(1, 4096, "orpo")
    assert needed(4, 100_000) == needed(4, 4096) > needed(4, 500) > needed(1, 500)


class Gpu:
    """Of 40 GB, with so much free."""

    def __init__(self, monkeypatch, free_gb):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(free_gb * 1e9), 40 * 10**9))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 2 * 10**9)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 10**9)

    def model(self, spec):
        weight = torch.empty(ADAPTER, device="meta", requires_grad=True)
        whole = SimpleNamespace(config=SHAPE, parameters=lambda: iter([weight]))
        return SimpleNamespace(device=torch.device("cuda"), spec=spec, model=whole)


@pytest.mark.parametrize(("free", "longest", "batches"), [
    (30, 500, (4, 2)), (29, 4096, (2, 4)), (19, 4096, (2, 4)), (13, 4096, (1, 8)), (2, 4096, (1, 8)),
])  # fmt: skip
def test_the_forecast_halves_what_does_not_fit(free, longest, batches, monkeypatch):
    said, asked = [], Settings.of(LARGE, steps=1)
    fit = memory.fitting(Gpu(monkeypatch, free).model(LARGE), asked, longest, said.append)
    assert (fit.batch_size, fit.gradient_accumulation) == batches
    assert replace(fit, batch_size=4, gradient_accumulation=2) == asked
    assert bool(said) is (batches != (4, 2))
    if said:
        assert f"batches of {batches[0]} x {batches[1]} pairs instead of 4 x 2: for texts of 4096" in said[0]
        assert f"{free + 1} GB are free" in said[0]


def test_somebodys_choice_stays_and_a_cpu_is_not_asked(monkeypatch):
    model = Gpu(monkeypatch, 2).model(with_values(LARGE, ["batch_size=2"]))
    asked = Settings.of(model.spec, steps=1)
    assert memory.fitting(model, asked, 4096, pytest.fail) == asked
    model = SimpleNamespace(device=torch.device("cpu"), spec=LARGE)
    assert memory.fitting(model, Settings.of(LARGE, 1), 4096, pytest.fail) == Settings.of(LARGE, 1)


@pytest.mark.parametrize("batches", [(8, 1), (6, 2), (3, 3), (2, 4)])
def test_smaller_batches_are_as_many_pairs_a_step(batches):
    fit = replace(QUICK, batch_size=batches[0], gradient_accumulation=batches[1])
    while fit.batch_size > 1:
        half = memory.smaller(fit)
        assert half.batch_size < fit.batch_size
        assert half.batch_size * half.gradient_accumulation == batches[0] * batches[1]
        fit = half


def test_no_more_pairs_were_at_once_than_there_are():
    said, settings = [], replace(QUICK, batch_size=8, gradient_accumulation=1)
    fit = memory.after_out_of_memory(settings, 2, 0, said.append)
    assert (fit.batch_size, fit.gradient_accumulation) == (1, 2) and "with 2 pairs at once" in said[0]
    with pytest.raises(UserError, match="with 1 pair at once"):
        memory.after_out_of_memory(settings, 1, 0, said.append)


def cramped(monkeypatch, pairs, from_step=0):
    """TRL on a GPU that holds so many pairs at once, and shows it from a step on."""
    import_unsloth()  # before trl
    import trl

    class Cramped(trl.DPOTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            if len(inputs["input_ids"]) > 2 * pairs and self.state.global_step >= from_step:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().training_step(model, inputs, *args, **kwargs)

    monkeypatch.setattr(trl, "DPOTrainer", Cramped)


def trained(output, settings=QUICK, said=None):
    settings = replace(settings, loss="dpo")
    return dpo.train(new(), TRAIN, HELD, settings, output, resume=True, log=(said or []).append)


def test_out_of_memory_at_step_0_goes_on_with_half_as_many_at_once(tmp_path, monkeypatch):
    said = ["as it came"]
    four = trained(tmp_path / "four", replace(QUICK, batch_size=4, gradient_accumulation=2))
    with monkeypatch.context() as patch:
        cramped(patch, pairs=4)
        result = trained(tmp_path / "half", said=said)
    assert any("at step 0 with 8 pairs at once: goes on with batches of 4 x 2" in line for line in said)
    assert result.adapter == four.adapter and rows_of(tmp_path / "half") == rows_of(tmp_path / "four")
    whole = trained(tmp_path / "whole")
    assert result.after["held_out"] == pytest.approx(whole.after["held_out"], abs=1e-3)
    facts = json.loads((tmp_path / "half/training.json").read_text())
    assert (facts["settings"]["batch_size"], facts["settings"]["gradient_accumulation"]) == (8, 1)
    taken = [facts["trainer"][k] for k in ("per_device_train_batch_size", "gradient_accumulation_steps")]
    assert taken == [4, 2]


def test_out_of_memory_at_a_later_step_goes_on_from_the_checkpoint(tmp_path, monkeypatch):
    said = ["as it came"]
    cramped(monkeypatch, pairs=4, from_step=3)
    result = trained(tmp_path / "run", said=said)
    assert any("out of GPU memory at step 3 with 8 pairs" in line for line in said)
    assert any("goes on from the checkpoint of step 2 of 4" in line for line in said)
    steps = [row["step"] for row in rows_of(tmp_path / "run") if row["kind"] == "train"]
    assert steps == [1, 2, 3, 4] and (result.status, result.steps, result.taken) == ("finished", 4, 4)
    monkeypatch.undo()
    undisturbed = trained(tmp_path / "undisturbed")
    assert result.before == undisturbed.before
    assert result.after["held_out"] == pytest.approx(undisturbed.after["held_out"], abs=1e-3)


def test_out_of_memory_with_one_pair_is_a_sentence(tmp_path, monkeypatch):
    cramped(monkeypatch, pairs=0)
    with pytest.raises(UserError, match="out of GPU memory at step 0 with 1 pair at once: use fewer --bits"):
        trained(tmp_path / "run", replace(QUICK, batch_size=2))
    model = new()
    model.add_adapter(r=8, alpha=8, seed=0)
    with pytest.raises(UserError, match="out of GPU memory"):
        dpo.train_dpo(model, TRAIN[:1], replace(QUICK, batch_size=1, loss="dpo"), tmp_path / "bare")


def test_nothing_keeps_a_trained_model_alive(tmp_path, monkeypatch):
    """With the optimizer of a GPU, whose steps no CPU can do."""
    import_unsloth()
    from bitsandbytes.optim.optimizer import Optimizer8bit

    build = dpo.build

    def for_a_gpu(*args):
        trainer = build(*args)
        trainer.args.optim = type(trainer.args.optim)("adamw_8bit")
        return trainer

    monkeypatch.setattr(dpo, "build", for_a_gpu)
    monkeypatch.setattr(Optimizer8bit, "step", lambda self, closure=None: None)
    model = new()
    left = [weakref.ref(part) for part in (model.model, model.model.get_input_embeddings())]
    dpo.train(model, TRAIN, HELD, QUICK, tmp_path / "run", resume=True, log=str)
    del model
    free_memory()
    assert [part() for part in left] == [None, None]
