"""training.json: whose output a directory is."""

from dataclasses import replace

import pytest
from cai.core.errors import UserError
from cai.training import dpo, manifest
from quick import HELD, QUICK, TRAIN


def quiet(text):
    pass


def test_other_settings_and_other_pairs_are_refused(whole, base):
    _, output, _, _ = whole
    with pytest.raises(UserError, match="beta was 0.3, now 0.2; steps was 4, now 5"):
        dpo.train(base, TRAIN, HELD, replace(QUICK, steps=5, beta=0.2), output, resume=True)
    with pytest.raises(UserError, match="pairs was"):
        dpo.train(base, TRAIN[1:], HELD, QUICK, output, resume=True)


def test_the_same_example_on_both_sides_is_refused(base, tmp_path):
    with pytest.raises(UserError, match="1 examples .* both held out"):
        dpo.train(base, TRAIN, [TRAIN[0]], QUICK, tmp_path, resume=True, log=quiet)


def test_an_adapter_of_another_making_is_not_overwritten(base, tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"mine")
    with pytest.raises(UserError, match="holds an adapter of another making"):
        dpo.train(base, TRAIN, HELD, QUICK, tmp_path, resume=True, log=quiet)
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == b"mine"


def test_a_damaged_manifest_and_a_lost_adapter_are_sentences(tmp_path):
    facts = {"steps": 4}
    begun = manifest.claim(tmp_path, facts, resume=True)
    assert begun == {"settings": facts, "status": manifest.BEGUN} == manifest.claim(tmp_path, facts, True)
    manifest.write_json(
        tmp_path / "training.json", begun | {"status": "finished", "result": {"adapter": "x"}}
    )
    with pytest.raises(UserError, match="no longer holds the adapter that was saved"):
        manifest.claim(tmp_path, facts, resume=True)
    for text in ("{", "[]", "{}", '{"settings": 3}', '{"settings": {"steps": 4}}'):
        (tmp_path / "training.json").write_text(text)
        with pytest.raises(UserError, match="damaged: --fresh"):
            manifest.claim(tmp_path, facts, resume=True)
        assert not manifest.is_finished(tmp_path)
