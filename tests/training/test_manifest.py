"""training.json: whose output a directory is."""

import json
import shutil
from dataclasses import replace

import pytest
from cai.core.errors import UserError
from cai.models import model
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


def put_training(whole, directory, change=lambda found: None):
    """A copy of the finished training, and something in its training.json changed."""
    shutil.copytree(whole[1], directory, dirs_exist_ok=True)
    found = json.loads((directory / "training.json").read_text())
    change(found)
    (directory / "training.json").write_text(json.dumps(found))
    return found


@pytest.mark.parametrize("change", [
    lambda m: m.update(status=3), lambda m: m.pop("result"), lambda m: m["result"].update(adapter=None),
    lambda m: m["result"].update(steps="4"), lambda m: m["result"].update(before=[]),
    lambda m: m["result"]["after"]["train"].update(loss=float("nan")),
    lambda m: m["result"]["before"].pop("held_out"), lambda m: m["result"].pop("forecast"),
    lambda m: m["settings"].update(beta="0.3"),
])  # fmt: skip
def test_a_result_of_other_types_is_damaged(whole, tmp_path, change):
    facts = put_training(whole, tmp_path)["settings"]
    assert manifest.is_finished(tmp_path) and manifest.claim(tmp_path, facts, resume=True)
    put_training(whole, tmp_path, change)
    with pytest.raises(UserError, match="training.json is damaged: --fresh"):
        manifest.claim(tmp_path, facts, resume=True)


@pytest.mark.parametrize("name", ["adapter_config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_training_is_not_finished_any_more_when_a_file_of_its_adapter_changes(whole, tmp_path, name):
    facts = put_training(whole, tmp_path)["settings"]
    (tmp_path / name).write_text(
        (tmp_path / name).read_text().replace('"lora_alpha": 32', '"lora_alpha": 320') + " "
    )
    if name == "adapter_config.json":
        assert model.lora_of(tmp_path)[1] == 320
    assert not manifest.is_finished(tmp_path)
    with pytest.raises(UserError, match=f"no longer holds the adapter that was saved .*{name}"):
        manifest.claim(tmp_path, facts, resume=True)


def test_the_hash_of_the_pairs_file_stands_beside_the_settings(tmp_path):
    """It is no setting: the texts that are trained on are."""
    assert manifest.claim(tmp_path, {"steps": 4}, True, "abc")["pairs_file"] == "abc"
    assert manifest.claim(tmp_path, {"steps": 4}, True, "other")["pairs_file"] == "abc"


def test_pairs_that_are_the_same_tokens_are_left_out_and_counted(base, tmp_path, monkeypatch):
    alike = TRAIN[0] | {"id": "alike", "chosen": "caf\u00e9", "rejected": "cafe\u0301"}
    seen = {}

    def facts_of(model, pairs, held_out, *more):
        seen.update(pairs=pairs, held_out=held_out)
        raise UserError("as far as the facts")

    monkeypatch.setattr(manifest, "facts_of", facts_of)
    with pytest.raises(UserError, match="as far as the facts"):
        dpo.train(base, [alike, *TRAIN], [*HELD, alike | {"id": "held"}], QUICK, tmp_path, resume=True)
    assert seen == {"pairs": TRAIN, "held_out": HELD}
    with pytest.raises(UserError, match="of every pair .n 1. are the same tokens"):
        dpo.train(base, [alike], HELD, QUICK, tmp_path, resume=True)
    with pytest.raises(UserError, match="are the same tokens"):
        dpo.train_dpo(base, [alike], QUICK, tmp_path)
    assert not list(tmp_path.iterdir())
