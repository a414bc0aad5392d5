"""Does the trained model prefer the better texts, and does it write them?

Implicit reward: beta * log(p/p_base) of a text (Rafailov et al. 2023, eq. 5), on every pair, held out or
trained on. On-policy completions: base and trained model answer the same held-out instructions in the bare
training format; the base model judges them in both orders, by how far they help without helping to do harm.
The base's answers in the prompt that first answers are generated with are judged as well: there it is at its
best.

A person's marks outrank the model's judgement: a revision that a person does not prefer to the first answer
is no truth to measure with, so its pair is left out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from cai.core import schema
from cai.core.errors import UserError
from cai.core.files import display_path
from cai.core.prompt_files import Prompt
from cai.core.stats import at_equal_length, correlation, mean, share
from cai.evaluation.marks import preferred
from cai.evaluation.model_pair import BARE, PROMPTED, ModelPair, source_of
from cai.evaluation.result_store import BASE, TRAINED, ResultStore
from cai.evaluation.suite import Metrics, Suite
from cai.generation.filters import kept_ids
from cai.generation.judge import HELPFUL, Case, Judgement, compare_all
from cai.training.implicit_reward import scores
from cai.training.losses import LOSSES
from cai.training.manifest import read_training

SIMILAR = 1.25  # answers are of similar length if the longer has at most this many times the other's words
ON_POLICY = "on-policy completions"
# What gates read:
HELD_OUT_ACCURACY = "held-out revision pairs: accuracy"
TRAINED_ACCURACY = "training revision pairs: accuracy"
WIN_RATE = f"{ON_POLICY}: win rate"
MARKED = "revisions better, marked by a person"

MARKS = {"revision": 1.0, "tie": 0.5, "first": 0.0}


def measure(pair: ModelPair, store: ResultStore) -> tuple[Metrics, dict[str, Any]]:
    """(metrics by name, notes)."""
    marks = preferred(source_of(pair.run))
    metrics, notes = marked(pair, store, marks)
    disputed = {i for i, better in marks.items() if better != "revision"}
    scored = [r for r in implicit(pair, store) if r["kind"] != "revision" or r["pair"] not in disputed]
    for group in ("held-out", "training"):
        for kind in ("revision", "anchor"):
            some = [r for r in scored if r["held_out"] == (group == "held-out") and r["kind"] == kind]
            if some or kind == "revision":
                metrics |= {f"{group} {kind} pairs: {name}": m for name, m in rewards(some).items()}
    prompts, near = pair.heldout()
    for form, label in ((BARE, ON_POLICY), (PROMPTED, f"{ON_POLICY}, base in its own prompt")):
        won = wins(on_policy(pair, store, prompts, form))
        metrics |= {f"{label}: {name}": m for name, m in won.items()}
    notes |= {"held-out instructions": len(prompts), "left out, near to trained ones": len(near)}
    return metrics, notes


# ---- a person's marks ----


def marked(pair: ModelPair, store: ResultStore, marks: dict[str, str]) -> tuple[Metrics, dict[str, Any]]:
    """(metrics by name, notes). Only revisions that were kept count: that a rejected one is worse speaks for
    the filters. The mark is part of its row's id, so that a mark that was changed is another row."""
    kept = kept_ids(pair.records)
    wanted = [
        {"id": f"mark/{i}/{better}", "record": i, "revision_better": better, "score": MARKS[better]}
        for i, better in marks.items()
        if i in kept
    ]
    if not wanted:
        return {}, {}
    scores = [r["score"] for r in store.fill(wanted, lambda some: [{} for _ in some])]
    left_out = sum(p["kind"] == "revision" and MARKS[marks.get(p["id"], "revision")] < 1 for p in pair.pairs)
    return {MARKED: share(scores)}, {"pairs left out, a person does not prefer the revision": left_out}


# ---- pairs ----


def implicit(pair: ModelPair, store: ResultStore) -> list[dict[str, Any]]:
    """A row a pair: log-probabilities (nats) and lengths (tokens, the end token among them) of both texts
    under base and trained model, and what follows from them."""
    beta = reward_beta(pair)

    def work(wanted: list[dict]) -> list[dict]:
        pairs = [by_id[w["id"]] for w in wanted]
        with pair.run.step("evaluation: log-probabilities", quiet=True):
            found = {who: scores(pair.engine, pairs, pair.adapter_of(who)) for who in (BASE, TRAINED)}
        done = []
        for i in range(len(pairs)):
            at = {"chosen": i, "rejected": len(pairs) + i}
            row = {f"{who}_{side}": found[who][k].total for who in found for side, k in at.items()}
            row |= {f"{side}_tokens": len(found[BASE][k].tokens) for side, k in at.items()}
            done.append(row | margins(row, beta))
        return done

    texts = ("prompt", "chosen", "rejected")
    by_id = {f"pair/{schema.content_id(' '.join(p[k] for k in texts))}": p for p in pair.pairs}
    about = ("held_out", "kind", "task")
    wanted = [
        {"id": key, "pair": p["id"], **{k: p[k] for k in about}, "beta": beta} for key, p in by_id.items()
    ]
    held_out = [w for w in wanted if w["held_out"]]
    training = [w for w in wanted if not w["held_out"]]
    if pair.limit and len(training) > pair.limit:  # the same ones on every run
        training = random.Random(0).sample(training, pair.limit)
    return store.fill(held_out + training, work)


def reward_beta(pair: ModelPair) -> float:
    """The beta of the adapter's own training where it is that of a margin, else the registry's."""
    trained = read_training(pair.run.checkpoints)
    if trained is None:
        return pair.spec.beta
    beta, loss = (trained.get("settings", {}).get(key) for key in ("beta", "loss"))
    if beta is None or loss not in LOSSES:
        raise UserError(
            f"{display_path(pair.run.checkpoints)}/training.json is damaged: "
            "restore it, or train the adapter again with --fresh"
        )
    return beta if LOSSES[loss].has_reference else pair.spec.beta


def margins(row: dict[str, float], beta: float) -> dict[str, float]:
    """margin: beta * (log-ratio of chosen - log-ratio of rejected); normalised: each by its own length."""
    ratio = {s: row[f"{TRAINED}_{s}"] - row[f"{BASE}_{s}"] for s in ("chosen", "rejected")}
    a_token = {s: ratio[s] / row[f"{s}_tokens"] for s in ratio}
    likelier = {
        f"{who}_prefers": row[f"{who}_chosen"] / row["chosen_tokens"]
        > row[f"{who}_rejected"] / row["rejected_tokens"]
        for who in (BASE, TRAINED)
    }
    return {
        "margin": beta * (ratio["chosen"] - ratio["rejected"]),
        "normalised_margin": beta * (a_token["chosen"] - a_token["rejected"]),
        "chosen_change": ratio["chosen"],
        **likelier,
    }


def rewards(rows: Sequence[dict[str, Any]]) -> Metrics:
    return {
        "accuracy": share([r["margin"] > 0 for r in rows]),
        "margin": mean([r["margin"] for r in rows]),
        "length-normalised accuracy": share([r["normalised_margin"] > 0 for r in rows]),
        "length-normalised margin": mean([r["normalised_margin"] for r in rows]),
        "likelier a token, base": share([r["base_prefers"] for r in rows]),
        "likelier a token, trained": share([r["trained_prefers"] for r in rows]),
        "change of log p(chosen)": mean([r["chosen_change"] for r in rows]),
    }


# ---- on-policy completions ----


def on_policy(
    pair: ModelPair, store: ResultStore, prompts: Sequence[Prompt], form: str
) -> list[dict[str, Any]]:
    """A row a comparison: the trained model's bare answer against the base's in the given format."""
    texts = [p.instruction for p in prompts]
    ours = pair.answers(store, texts, TRAINED, BARE)
    theirs = pair.answers(store, texts, BASE, form)
    wanted, cases = [], {}
    for prompt, old, new in zip(prompts, theirs, ours, strict=True):
        key = schema.content_id(f"{prompt.instruction}\n{old['answer']}\n{new['answer']}")
        key = f"judgement/{form}/{key}"
        cases[key] = Case(prompt.id, prompt.instruction, old["answer"], new["answer"], HELPFUL)
        facts = {"instruction": prompt.instruction, "kind": prompt.kind, "principle": HELPFUL.principle}
        wanted.append({"id": key, **facts, "base": old["answer"], "trained": new["answer"], "format": form})

    def work(some: list[dict]) -> list[dict]:
        differ = [w for w in some if w["base"] != w["trained"]]  # the same text twice is a tie, unasked
        with pair.run.step("evaluation: judge", quiet=True) as step:
            said = compare_all(pair.engine, pair.prompter, [cases[w["id"]] for w in differ], pair.seed)
            step.count(said, len(said))
        by_id = {w["id"]: j for w, j in zip(differ, said, strict=True)}
        return [outcome(by_id.get(w["id"])) for w in some]

    return store.fill(wanted, work)


def outcome(judgement: Judgement | None) -> dict[str, Any]:
    """score: 1 where the trained model's answer is better in both orders, 0 where worse, 0.5 for a tie."""
    winner = judgement.winner if judgement else "tie"
    score = {"second": 1.0, "first": 0.0, "tie": 0.5}[winner]
    return {"judgement": judgement.as_dict() if judgement else None, "score": score}


def wins(rows: Sequence[dict[str, Any]]) -> Metrics:
    won = [r["score"] for r in rows]
    words = [(len(r["base"].split()) + 1, len(r["trained"].split()) + 1) for r in rows]
    longer = [math.log(new / old) for old, new in words]
    similar = [s for s, d in zip(won, longer, strict=True) if abs(d) <= math.log(SIMILAR)]
    return {
        "win rate": share(won),
        "ties": share([s == 0.5 for s in won]),
        "win rate at similar length": share(similar),
        "win rate at equal length, by regression": at_equal_length(won, longer),
        "times as long": mean(longer, math.exp),
        "rank correlation of length and win": correlation(longer, won),
        **{
            f"win rate, {kind}": share([r["score"] for r in rows if r["kind"] == kind])
            for kind in ("benign", "harmful")
            if any(r["kind"] == kind for r in rows)
        },
    }


SUITE = Suite(
    "preference",
    "implicit rewards on pairs; on-policy completions judged in both orders",
    measure,
    decides=True,
)
