"""Experiment trackers stay at home unless told otherwise."""

import os

import pytest
from cai.training import trackers


@pytest.mark.parametrize(("netrc", "key", "offline"), [
    ("", None, True),
    ("machine example.org login user password secret\n", None, True),
    ("machine api.wandb.ai login user password secret\n", None, False),
    ("", "secret", False),
])  # fmt: skip
def test_wandb_stays_offline_unless_logged_in(netrc, key, offline, monkeypatch, tmp_path):
    monkeypatch.setattr(trackers, "check", lambda name: None)
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_API_KEY", "TENSORBOARD_LOGGING_DIR",
                 "TRACKIO_DIR"):  # fmt: skip
        monkeypatch.setenv(name, "")  # so that what prepare sets is undone
        monkeypatch.delenv(name)
    (tmp_path / "netrc").write_text(netrc)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    assert trackers.prepare("wandb", tmp_path) == ["wandb"]
    assert os.environ.get("WANDB_MODE") == ("offline" if offline else None)
    assert trackers.prepare("none", tmp_path) == []
