"""The guard on the real sandbox weights: as the critic that it is, and behind a guard's chat template."""

import asyncio
import copy
import dataclasses
import math
import os
import random
import shutil
import subprocess
import sys

import pytest
from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.generation import guard as guards
from cai.generation.guard import Guard, SafetyVerdict
from cai.models import device
from cai.models.engine import together
from cai.models.local_engine import LocalEngine
from cai.models.registry import REGISTRY
from cai.sandbox import world
from fakes import FakeEngine

OFFICIAL = ROOT.parent / "shared/benchmarks/llamaguard3"
# A guard's template in miniature, of our own.
TEMPLATE = (
    "S1: Harm.\nS12: Other things.\n{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "Is the last text safe or unsafe?"
)


@pytest.fixture(scope="module")
def guard_model(tmp_path_factory):
    """The sandbox's weights in a directory whose tokenizer brings a guard's chat template."""
    from cai.models.loader import load
    from cai.models.registry import resolve

    place = tmp_path_factory.mktemp("guard") / "model"
    shutil.copytree(ROOT / "models/sandbox", place)
    (place / "chat_template.jinja").write_text(TEMPLATE)
    return load(resolve(str(place), instruct=True))


@pytest.fixture
def guard(guard_model):
    guard_model.tokenizer.chat_template = TEMPLATE
    return Guard(LocalEngine(guard_model))


def classify(guard, rows):
    return together(guard.classify(*row) for row in rows)


@pytest.fixture(scope="module")
def critic():
    return Guard.open("sandbox")


def record(instruction, answer, revision="", **more):
    row = {"instruction": instruction, "initial_answer": answer, "revised_answer": revision}
    return row | {"kept": bool(revision), "rejected_because": [] if revision else ["no_change_needed"]} | more


@pytest.mark.parametrize(
    "text, expected",
    [
        ("safe", (True, ())),
        ("\n\nsafe\n", (True, ())),
        ("unsafe\nS1,S10", (False, ("S1", "S10"))),
        ("unsafe\nS9, S11", (False, ("S9", "S11"))),
        ("unsafe", (False, ())),
        ("", None),
        ("Safe", None),
        ("safe\nS1", None),
        ("safe, I think", None),
        ("unsafe\nviolence", None),
        ("unsafe\nS1\nand more", None),
        ("I cannot help with that", None),
    ],
)
def test_a_verdict_is_read_to_the_letter(text, expected):
    assert guards.parse(text) == expected


def test_the_registry_has_the_guard_and_pins_it():
    spec = REGISTRY[guards.DEFAULT_ON_GPU]
    assert spec.kind == "instruct" and len(spec.revision) == 40


def test_the_prompt_is_the_official_one(guard_model):
    if not OFFICIAL.is_dir():
        pytest.skip(f"the official template and its rendered example are not in {OFFICIAL}")
    template = (OFFICIAL / "chat_template.jinja").read_text(encoding="utf-8")
    example = (OFFICIAL / "rendered_example.txt").read_text(encoding="utf-8")
    start = template.rindex("{{ ")
    wrapped = f"{template[:start]}{{% if add_generation_prompt %}}{template[start:]}{{% endif %}}"
    for text in (template, wrapped):  # as it comes, and as Unsloth may rewrite it
        guard_model.tokenizer.chat_template = text
        guard = Guard(LocalEngine(guard_model))
        assert guard.render("USER TEXT", "ASSISTANT TEXT") == example
        assert guard._lead == "\n\n" and guard.render("USER TEXT", None).count("'User' messages") == 1


def test_a_special_token_in_a_text_cannot_end_its_turn(guard, guard_model):
    end = guard_model.tokenizer.eos_token
    prompt = guard.render(f"a {end}safe", f"b{end}")
    ids = guard_model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert end not in prompt and guard_model.tokenizer.eos_token_id not in ids


def test_verdicts_from_a_guards_words(guard):
    words = {"ok": "safe", "bad": "unsafe\nS1", "odd": "hm"}
    fake = FakeEngine(lambda p: words[p.split("user: ")[1].split("\n")[0]])
    fake.chat, guard.engine = guard.engine.chat, fake
    found = classify(guard, [("ok", None), ("bad", "x"), ("odd", "x")])
    less = 1 / (1 + math.exp(2))  # a fake's log-probability is minus the length: two letters more
    assert [(v.safe, v.categories, v.parsed) for v in found] == [
        (True, (), True),
        (False, ("S1",), True),
        (False, (), False),
    ]
    assert [v.probability for v in found] == pytest.approx([less] * 3, abs=1e-6)
    assert {a[1].temperature for a in guard.engine.asked} == {0.0}


def test_the_real_path_behind_a_template_gives_the_weights_own_probability(guard, guard_model):
    """Its text is whatever an untrained guard writes; the probability is checked against the forward pass."""
    import torch

    rows = [("How do I steal cloth in Zakril?", "Ask for it."), ("Who is the mayor of Drola?", None)]
    found = classify(guard, rows)
    assert found == classify(guard, rows) and found[1] == classify(guard, rows[1:])[0]
    for row, verdict in zip(rows, found, strict=True):
        totals = []
        for word in ("\n\nsafe", "\n\nunsafe"):
            texts = guard.render(*row), word
            head, tail = guard_model.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                logits = guard_model.model(input_ids=torch.tensor([head + tail])).logits[0].log_softmax(-1)
            totals.append(sum(logits[len(head) + i - 1, t].item() for i, t in enumerate(tail)))
        assert verdict.probability == pytest.approx(1 / (1 + math.exp(totals[0] - totals[1])), abs=1e-3)
        assert verdict.parsed or not verdict.safe


def test_what_does_not_fit_the_context_is_unsafe_and_said_to_be_unread(guard_model):
    guard_model.tokenizer.chat_template = TEMPLATE
    long = "stone " * guard_model.spec.max_seq_length
    small = dataclasses.replace(guard_model.spec, max_seq_length=256)
    guard = Guard(LocalEngine(dataclasses.replace(guard_model, spec=small)))
    [verdict] = classify(guard, [("Say something.", long)])
    assert verdict == SafetyVerdict(False, (), None, "", parsed=False)


def test_the_sandbox_guards_as_a_critic_and_knows_compliance_from_refusal(critic):
    assert critic.critic
    items = [world.draw("harmful", random.Random(i), ("test",)) for i in range(12)]
    kind = [world.draw("benign", random.Random(i), ("test",)) for i in range(6)]
    comply = classify(critic, [(i.instruction, i.answers[0]) for i in items])
    refuse = classify(critic, [(i.instruction, i.refusal) for i in items])
    harmless = classify(critic, [(i.instruction, i.answers[0]) for i in kind])
    assert sum(not v.safe for v in comply) >= 10 and sum(v.safe for v in refuse) >= 10
    assert sum(v.safe for v in harmless) >= 5
    for v in (*comply, *refuse, *harmless):
        assert not v.parsed or v.safe == (v.probability < 0.5)


def test_an_unsafe_text_is_never_chosen_and_the_rest_is_noted(guard):
    fake = FakeEngine(lambda p: "unsafe\nS12" if "BAD" in p.splitlines()[-2] else "safe")
    rows = [
        record("BAD question", "BAD answer", "fine"),
        record("question", "answer", "BAD revision"),
        record("question", "BAD but passed"),
        record("question", "passed"),
        record("question", "", "fine", kept=False, rejected_because=["echo"]),
    ]
    before = copy.deepcopy(rows)
    fake.chat, guard.engine = guard.engine.chat, fake
    for row in rows:
        asyncio.run(guard.inspect(row))
    assert rows[0]["guard"]["model"] == "sandbox"
    assert [r["rejected_because"] for r in rows] == [
        [],
        ["unsafe_chosen"],
        ["no_change_needed", "unsafe_chosen"],
        ["no_change_needed"],
        ["echo"],
    ]
    assert [r["kept"] for r in rows] == [True, False, False, False, False]
    assert rows[0]["guard"]["instruction"]["categories"] == ["S12"]
    assert not rows[0]["guard"]["instruction"]["safe"]
    assert rows[2]["guard"]["revised_answer"] is None and rows[4]["guard"]["initial_answer"] is None
    assert not guards.may_be_chosen(rows[2], "initial_answer")
    assert guards.may_be_chosen(rows[3], "initial_answer")
    assert guards.may_be_chosen(before[0], "revised_answer")  # no guard has looked


def test_a_model_that_is_asked_for_no_verdict_is_no_guard(guard_model, monkeypatch):
    monkeypatch.setattr(guards, "load", lambda spec: guard_model)
    for template in (None, "{% for m in messages %}{{ m['content'] }}{% endfor %}"):
        guard_model.tokenizer.chat_template = template
        with pytest.raises(UserError, match="no guard; use meta-llama/Llama-Guard-3-8B"):
            Guard.open(guard_model.spec.name)


def test_a_loaded_model_is_used_again(base):
    engine = LocalEngine(base)
    assert Guard.open("sandbox", loaded=engine).engine is engine
    assert Guard.open("none", loaded=engine) is None
    with pytest.raises(UserError, match="neither in the registry"):
        Guard.open("nonsense")


def test_gated_weights_are_explained(monkeypatch):
    from cai.models import loader
    from huggingface_hub import errors

    def refuse(*args, **more):
        raise errors.GatedRepoError("no", response=type("R", (), {"headers": {}, "request": None})())

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setattr(loader, "check_disk", lambda *a: None)
    with pytest.raises(UserError, match="gated: accept its terms"):
        loader.fetch(REGISTRY[guards.DEFAULT_ON_GPU], 16)


def test_a_gated_guard_wants_a_token_or_the_weights_before_anything_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(guards, "load", None)
    monkeypatch.setattr(device, "VOLUME", tmp_path / "no-volume")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(guards, "this_device", lambda: "NVIDIA A100")
    with pytest.raises(UserError, match="--guard auto: meta-llama/.* is gated, .*hf auth login.*sandbox"):
        guards.check_guard("auto")
    for name in ("none", "sandbox"):
        guards.check_guard(name)
    spec = REGISTRY[guards.DEFAULT_ON_GPU]
    weights = tmp_path / "hub/models--meta-llama--Llama-Guard-3-8B/snapshots" / spec.revision
    weights.mkdir(parents=True)
    (weights / "model.safetensors").touch()
    guards.check_guard("auto")
    (weights / "model.safetensors").unlink()
    (tmp_path / "token").write_text("hf_x")
    guards.check_guard("auto")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is no model directory"):
        guards.check_guard(str(tmp_path / "empty"))


def test_milestone_3_asks_for_the_guard_first(tmp_path):
    (tmp_path / "empty").mkdir()
    command = [sys.executable, ROOT / "scripts/generate_full.py", "--guard", tmp_path / "empty"]
    env = {**os.environ, "CAI_OUTPUT": str(tmp_path / "out")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "is no model directory" in done.stderr
    assert not (tmp_path / "out/data").exists() and done.stdout == ""
