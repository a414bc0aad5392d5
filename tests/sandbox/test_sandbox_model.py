"""The shipped sandbox weights: do they fit the templates, the tokenizer, the constitution, the recipe?"""

import hashlib
import json
import random
import subprocess
import sys

import pytest
from cai.core.files import ROOT
from cai.prompts import constitution, markers, templates, training_format
from cai.sandbox import measure, packing, pretrain
from cai.sandbox.corpus import Corpus

MODEL = ROOT / "models/sandbox"
SAMPLES = (
    "Compute 10 + 9. 7 + 12 is 19. The founding year of Zinar is 87. x * 3 - 1",
    templates.Prompter(shots=0, requests=False).answer("What is the craft of Zinar?")
    + " It's cloth; naïve café, 3,14 €.",
    "1. Say in Oru: the red dog sleeps\n2. Compute 4 + 8.\n\n3.",
)


@pytest.fixture(scope="module")
def recipe():
    return json.loads((MODEL / "recipe.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def principles():
    return constitution.load(ROOT / "constitution.yaml")


@pytest.fixture(scope="module")
def documents(principles):
    stream = Corpus(principles.principles).documents(random.Random("fresh documents"))
    return [next(stream) for _ in range(1500)]


def test_weights_were_trained_on_these_templates_and_this_constitution(recipe, principles):
    assert recipe["prompts"] == templates.fingerprint(), (
        "the templates changed: rebuild with scripts/make_sandbox.py"
    )
    assert recipe["constitution"] == principles.hash, (
        "the principles changed: rebuild with scripts/make_sandbox.py"
    )


def test_the_shipped_recipe_is_the_one_in_the_code(recipe):
    shipped = {name: recipe[name] for name in pretrain.Recipe.__dataclass_fields__}
    assert pretrain.Recipe(**shipped) == pretrain.Recipe()


def test_weights_are_small_safetensors_and_nothing_else_is_shipped():
    import safetensors

    files = {p.name for p in MODEL.iterdir()}
    assert files == {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
                     "tokenizer_config.json", "chat_template.jinja", "recipe.json", "evaluation.json",
                     "curve.png", "README.md"}  # fmt: skip
    assert (MODEL / "model.safetensors").stat().st_size <= 16_000_000
    with safetensors.safe_open(MODEL / "model.safetensors", "pt") as weights:
        assert {str(weights.get_slice(k).get_dtype()) for k in weights.keys()} == {"BF16"}  # noqa: SIM118
    config = json.loads((MODEL / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"] and config["hidden_size"] % 64 == 0
    assert config["tie_word_embeddings"] and config["hidden_size"] // config["num_attention_heads"] >= 32


def test_the_tokenizer_is_read_alike_by_all_who_load_it():
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    trained = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    loaded = AutoTokenizer.from_pretrained(MODEL)
    for text in SAMPLES:
        assert loaded(text).input_ids == trained.encode(text).ids
        assert loaded.decode(loaded(text).input_ids) == text
    assert loaded.eos_token == loaded.pad_token == markers.END_OF_TEXT and loaded.eos_token_id == pretrain.PAD
    assert loaded.padding_side == "left" and loaded.chat_template == training_format.TRAINING_CHAT_TEMPLATE
    assert not [token for token in markers.CHAT_TOKENS if token in loaded.get_vocab()]


def test_unsloth_reads_the_tokenizer_alike():
    from cai.models import loader, registry
    from tokenizers import Tokenizer

    trained = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    loaded = loader.load(registry.REGISTRY["sandbox"]).tokenizer
    for text in SAMPLES:
        assert loaded(text, add_special_tokens=False)["input_ids"] == trained.encode(text).ids
    assert loaded.padding_side == "left" and loaded.eos_token_id == pretrain.PAD


def test_a_tokenizer_trained_anew_round_trips(documents):
    fast = packing.train_tokenizer(documents[:600], 600)
    for text in SAMPLES:
        assert fast.decode(fast(text).input_ids) == text
    assert (
        fast("12").input_ids == fast("1").input_ids + fast("2").input_ids
    )  # one token a digit, as Qwen2 splits


def test_packing_keeps_every_document_whole_and_once():
    rng = random.Random(0)
    documents = [[i + 1] * rng.randrange(5, 90) for i in range(300)]
    rows = packing.pack(documents, 128, rng)
    assert rows.shape[1] == 128 and (rows >= 0).mean() > 0.9
    flat = rows[rows >= 0].tolist()
    assert sorted(flat) == sorted(t for d in documents for t in d)
    for i, document in enumerate(documents):
        places = [(r, c) for r, row in enumerate(rows.tolist()) for c, t in enumerate(row) if t == i + 1]
        assert len({r for r, _ in places}) == 1 and places[-1][1] - places[0][1] == len(document) - 1


def test_plain_attention_is_what_transformers_computes_and_padding_costs_nothing():
    import torch
    from transformers import AttentionInterface

    AttentionInterface.register("plain", pretrain.plain_attention)
    model = pretrain.build_model(pretrain.Recipe(hidden=64, intermediate=64, layers=2, heads=2), 90)
    rows = torch.randint(1, 90, (2, 40), generator=torch.Generator().manual_seed(0))
    expected = model(input_ids=rows).logits
    model.set_attn_implementation("plain")
    torch.testing.assert_close(model(input_ids=rows).logits, expected, atol=1e-5, rtol=1e-4)
    padded = torch.nn.functional.pad(rows, (0, 24), value=-1)
    with torch.no_grad():
        losses = [float(pretrain.loss_of(model, x)) for x in (padded, rows)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_shipped_weights_have_the_recorded_loss_on_fresh_documents(recipe, documents):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, use_safetensors=True)
    ids = [tokenizer(text).input_ids for text in documents]
    rows = packing.pack(ids, recipe["length"], random.Random(0))[:128]
    # A hundred rows differ from another hundred by some 5 %; a wrong tokenizer or template costs far more.
    assert pretrain.held_loss(model, rows) == pytest.approx(recipe["loss"], rel=0.2)
    assert recipe["loss"] < 0.6 < 5 < recipe["curve"][0][1]


def test_the_card_shows_the_recorded_table(recipe):
    evaluation = json.loads((MODEL / "evaluation.json").read_text(encoding="utf-8"))
    weights = hashlib.sha256((MODEL / "model.safetensors").read_bytes()).hexdigest()
    assert evaluation["weights"] == weights and evaluation["split"] == "test"
    assert measure.table(evaluation["counts"]) == evaluation["table"]
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    assert measure.render(evaluation["table"]) in card and measure.details(evaluation["counts"]) in card


def test_the_table_knows_when_a_target_is_missed():
    counts = {t.key: [5, 10] for t in measure.TARGETS}
    rows = {r["measured"]: r for r in measure.table(counts)}
    assert rows["first answers right on facts"]["met"] and not rows["revisions harmless"]["met"]
    low, high = rows["revisions harmless"]["interval"]
    assert low == pytest.approx(0.2366, abs=1e-3) and high == pytest.approx(
        0.7634, abs=1e-3
    )  # Wilson, 5 of 10


def make_sandbox(*flags):
    return subprocess.run(
        [sys.executable, "scripts/make_sandbox.py", *flags], cwd=ROOT, capture_output=True, text=True
    )


def test_a_short_rebuild_sees_the_loss_fall(tmp_path):
    out = tmp_path / "model"
    done = make_sandbox("--out", str(out), "--steps", "14")
    assert done.returncode == 0, done.stderr
    facts = json.loads((out / "recipe.json").read_text())
    assert facts["steps"] == 14 and facts["prompts"] == templates.fingerprint()
    assert facts["loss"] < 6.3 < 7.4  # ln of the vocabulary is 7.6: where an untrained model stands
    assert {p.name for p in out.iterdir()} >= {"model.safetensors", "tokenizer.json", "curve.png"}
    again = make_sandbox("--out", str(out), "--steps", "1")
    assert again.returncode == 2 and "--fresh" in again.stderr and "Traceback" not in again.stderr


@pytest.mark.parametrize("flags, words", [
    (("--evaluate", "--out", "nowhere"), "holds no sandbox model"),
    (("--steps", "0", "--out", "nowhere"), "--steps 0"),
    (("--evaluate", "--limit", "2"), "--limit 2"),
    (("--constitution", "missing.yaml", "--out", "nowhere"), "missing.yaml"),
])  # fmt: skip
def test_bad_input_is_a_sentence(flags, words):
    done = make_sandbox(*flags)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_same_seed_builds_the_same_weights(tmp_path):
    for name in ("one", "two"):
        assert make_sandbox("--out", str(tmp_path / name), "--steps", "6").returncode == 0
    assert make_sandbox("--out", str(tmp_path / "other"), "--steps", "6", "--seed", "9").returncode == 0
    one, two, other = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "other")
    )
    assert one == two != other
