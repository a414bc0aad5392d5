"""Logged steps are checked; a log goes back to the checkpoint that a training goes on from."""

import math

import pytest
from cai.core.errors import UserError
from cai.core.jsonl import append
from cai.training import callbacks, checkpoints
from cai.training.callbacks import Log, Watched
from quick import HELD, QUICK, TRAIN, rows_of


def test_a_loss_that_is_not_finite_stops(tmp_path):
    with pytest.raises(UserError, match="loss is nan at step 2: lower the learning rate"):
        Log(QUICK, tmp_path).step(2, {"loss": math.nan})


def test_rows_after_the_checkpoint_come_again(tmp_path):
    held = {"kind": "held_out", "n": 8, "fall": 0.0}
    rows = [held | {"step": 0, "loss": 0.7}, held | {"step": 2, "loss": 0.5}, held | {"step": 4, "loss": 0.3}]
    append(tmp_path / "training.jsonl", rows)
    for step in (0, 2):
        place = checkpoints.place(tmp_path, step)
        place.mkdir(parents=True)
        checkpoints.complete(place)
    said = []
    state = Watched(None, None, TRAIN, HELD, QUICK, tmp_path, said.append)
    assert state.resume_at == 2 and "goes on from the checkpoint of step 2 of 4" in said[0]
    assert rows_of(tmp_path) == state.rows == rows[:2]
    assert (state.watch.best, state.watch.best_step) == (0.5, 2)


def test_a_measurement_takes_the_same_pairs_whatever_their_order(monkeypatch):
    monkeypatch.setattr(callbacks, "MEASURED", 5)
    some = callbacks._some(TRAIN)
    assert len(some) == 5 and callbacks._some(TRAIN[::-1]) == some
