"""A run whose texts come from a server: the weights are in this process for the training alone."""

import gc
import weakref

import pytest
from cai.core.errors import BudgetReached
from cai.core.run import Run, read_manifest
from cai.models import session
from cai.models.session import Session
from cai.training import dpo
from fakes import FakeEngine
from quick import HELD, QUICK, TRAIN, new


class Served(FakeEngine):
    """Remembers what it was told, in order."""

    name = "vllm"

    def __init__(self, told):
        super().__init__(lambda prompt: "x")
        self.told = told

    def release(self):
        self.told.append("release")

    def load_adapter(self, path, name):
        self.told.append(f"adapter {name}")
        self.adapters[name] = path.name

    async def choose(self, prompt, options, adapter=None):
        self.told.append("asked")
        return dict.fromkeys(options, -1.0)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """(what happened in order, the models that were loaded, a function that opens the session)"""
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    told, models = [], []

    def load(spec, bits):
        told.append("load")
        model = new()
        models.append(weakref.ref(model.model))
        return model

    monkeypatch.setattr(session, "load", load)
    return told, models, lambda run: Session(run, None, Served(told), None, None)


def test_the_weights_are_here_for_the_training_alone(served, tmp_path):
    told, models, opened = served
    with Run.open("mine", {"seed": 0}) as run:
        here = opened(run)
        result = dpo.train_adapter(here, [*HELD, *TRAIN], QUICK)
        assert told == ["release", "load", "adapter default", "asked"]
        gc.collect()
        assert here.model is None and models[0]() is None  # else the server would find no memory
        assert here.engine.adapters == {"default": "mine"}
    ledger = [row.split(",") for row in (tmp_path / "logs/ledger.jsonl").read_text().splitlines()]
    assert len(ledger) == 3
    assert read_manifest("mine")["adapter"] == result.adapter
    assert (tmp_path / "logs/probe.json").exists()  # what a server of this model is held against


def test_a_training_that_has_ended_loads_nothing(served):
    told, models, opened = served
    with Run.open("mine", {"seed": 0}) as run:
        first = dpo.train_adapter(opened(run), [*HELD, *TRAIN], QUICK)
        told.clear()
        again = dpo.train_adapter(opened(run), [*HELD, *TRAIN], QUICK)
        assert told == ["adapter default", "asked"] and again.adapter == first.adapter and again.taken == 0
        assert again.after == first.after
        # other pairs, as far as the run knows: the long way finds that out
        run.record(pairs={"sha256": "of another file"})
        with pytest.raises(Exception, match="pairs"):
            dpo.train_adapter(opened(run), [*HELD, *TRAIN[:-1]], QUICK)


def test_what_stops_a_training_leaves_no_server(served):
    told, _, opened = served
    with Run.open("mine", {"seed": 0}) as run:

        class Nothing:
            rates = {}

            def step(self, *args):
                raise BudgetReached("no money")

            def begin_step(self, *args):
                pass

            end_step = begin_step

        run.budget = Nothing()
        with pytest.raises(BudgetReached), opened(run) as here:
            dpo.train_adapter(here, [*HELD, *TRAIN], QUICK)
        assert told == ["release", "load", "release"]
