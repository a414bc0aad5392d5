"""The local engine: what a batch does, and the scheduler that fills batches from what waits."""

import asyncio
import math
import random

import pytest
import torch
from cai.core.errors import UserError
from cai.core.ledger import charged_to
from cai.models import local_engine
from cai.models.engine import (
    Completion,
    Sampling,
    Score,
    TooLong,
    complete_all,
    logprobs_all,
    sampling,
    together,
)
from cai.models.local_engine import LocalEngine
from cai.models.registry import REGISTRY
from cai.prompts.markers import STOPS
from cai.prompts.templates import Prompter

PROMPTER = Prompter(0, False, 3)
ANSWER, SHORT = Sampling(0.7, 24, STOPS["answer"]), Sampling(0.7, 4)


@pytest.fixture(scope="module")
def prompts(sandbox_instructions):
    """Prompts of very different lengths: answers, and lists of instructions."""
    lists = [PROMPTER.instructions(sandbox_instructions[i : i + 3]) for i in range(8)]
    return [PROMPTER.answer(t) for t in sandbox_instructions[:24]] + lists


def test_a_rows_text_does_not_depend_on_its_batch(base, prompts):
    seeds = list(range(len(prompts)))
    at_once = complete_all(LocalEngine(base, max_batch=64), prompts, ANSWER, seeds)
    engine = LocalEngine(base, max_batch=1)
    alone = [complete_all(engine, [p], ANSWER, [s])[0] for p, s in zip(prompts, seeds, strict=True)]
    by_five = complete_all(LocalEngine(base, max_batch=5), prompts[::-1], ANSWER, seeds[::-1])[::-1]
    assert at_once == alone == by_five


def test_how_a_text_of_a_purpose_is_drawn_is_the_registrys():
    spec = REGISTRY["sandbox"]
    found = {purpose: sampling(spec, purpose) for purpose in STOPS}
    assert {p: (s.temperature, s.max_tokens) for p, s in found.items()} == {
        "instruction": (0.7, 90),
        "answer": (0.7, 48),
        "critique": (0.3, 80),
        "revision": (0.3, 48),
        "judge": (0.3, 80),
    }
    assert {p: s.stop for p, s in found.items()} == STOPS


def test_the_roomy_cache_holds_what_transformers_own_cache_holds():
    from cai.models.kv_cache import STEP, RoomyLayer
    from transformers.cache_utils import DynamicLayer

    roomy, plain = RoomyLayer(), DynamicLayer()
    for length in (5, 1, 1, STEP, 1, 3 * STEP):
        keys, values = torch.randn(2, 3, length, 4), torch.randn(2, 3, length, 4)
        for mine, theirs in zip(roomy.update(keys, values), plain.update(keys, values), strict=True):
            assert torch.equal(mine, theirs)
        assert roomy.get_seq_length() == plain.get_seq_length()


def test_the_seed_and_the_temperature_decide(base, prompts):
    engine, warm = LocalEngine(base), Sampling(1.0, 24)
    assert len({c.text for c in complete_all(engine, [prompts[-1]] * 6, warm, range(6))}) > 3
    twice, once = (
        complete_all(engine, [prompts[0]] * 2, warm, [4, 4]),
        complete_all(engine, prompts[:1], warm, [4]),
    )
    assert twice == once * 2
    greedy = complete_all(engine, [prompts[0]] * 3, Sampling(0.0, 24), [1, 2, 3])
    assert greedy[0] == greedy[1] == greedy[2]


def test_samples_follow_the_models_distribution(base, prompts):
    """One token, many seeds: the frequencies are the softmax at that temperature."""
    engine, n = LocalEngine(base, max_batch=500), 1500
    ids = base.tokenizer(prompts[-1], return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = base.model(input_ids=ids).logits[0, -1, : len(base.tokenizer)].float()
    probabilities = torch.softmax(logits / 0.7, -1)
    drawn = complete_all(engine, [prompts[-1]] * n, Sampling(0.7, 1), range(n))
    top = int(probabilities.argmax())
    p = float(probabilities[top])
    share = sum(c.text == base.tokenizer.decode([top]).strip() for c in drawn) / n
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / n) + 0.01


def test_how_a_text_ends(base, prompts):
    engine = LocalEngine(base)
    [cut] = complete_all(engine, [prompts[-1]], Sampling(0.7, 3), [0])
    assert (cut.finish_reason, cut.ended_by, cut.tokens) == ("length", None, 3)
    [stopped] = complete_all(engine, [prompts[-1]], Sampling(0.7, 60, ("\n",)), [0])
    assert (stopped.finish_reason, stopped.ended_by) == ("stop", "\n") and "\n" not in stopped.text
    answers = complete_all(engine, prompts[:16], Sampling(0.7, 48, STOPS["answer"]), range(16))
    assert {c.finish_reason for c in answers} <= {"stop", "length"} and any(c.ended_by for c in answers)
    for c in answers:
        assert "Instruction:" not in c.text and "<|endoftext|>" not in c.text


def test_token_counts_are_those_of_the_tokenizer(base, prompts):
    done = complete_all(LocalEngine(base), prompts[:12], Sampling(0.7, 48, ("\n",)), range(12))
    for prompt, c in zip(prompts, done, strict=False):
        assert c.prompt_tokens == len(base.tokenizer(prompt).input_ids)
        # 1: the end itself
        assert abs(c.tokens - len(base.tokenizer(f" {c.text}").input_ids)) <= 1 and 0 < c.tokens <= 48


def test_a_prompt_that_does_not_fit_is_reported_and_the_others_go_on(base, prompts):
    done = complete_all(LocalEngine(base), ["word " * 1100, prompts[0]], Sampling(0.7, 8), [0, 1])
    assert done[0].finish_reason == "too_long" and done[0].text == "" and done[1].tokens > 0


@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>", "<|eot_id|>"])
def test_no_text_of_the_engine_holds_a_chat_token(base, token, monkeypatch):
    """Even one that is spelt in pieces: a later prompt would be refused for it."""
    monkeypatch.setattr(base.tokenizer, "decode", lambda row, **more: f"Well. {token} x", raising=False)
    [done] = complete_all(LocalEngine(base), ["hello"], SHORT, [0])
    assert (done.text, done.finish_reason, done.ended_by) == ("Well.", "stop", token)


def test_a_checkpoints_own_sampling_settings_do_not_slip_in(base):
    base.model.generation_config.top_k, base.model.generation_config.repetition_penalty = 1, 5.0
    LocalEngine(base)
    config = base.model.generation_config
    assert config.top_k in (None, 50) and config.repetition_penalty in (None, 1.0)


# ---- scores ----


def test_logprobs_are_the_models_whatever_the_batch(base, prompts):
    texts = [f" {'the ' * k}town<|endoftext|>" for k in range(len(prompts))]
    scores = logprobs_all(LocalEngine(base, max_batch=16), prompts, texts)
    for prompt, text, score in list(zip(prompts, texts, scores, strict=True))[::7]:
        head, tail = base.tokenizer(prompt).input_ids, base.tokenizer(text).input_ids
        with torch.inference_mode():
            logp = torch.log_softmax(base.model(input_ids=torch.tensor([head + tail])).logits[0].float(), -1)
        expected = [float(logp[len(head) - 1 + i, t]) for i, t in enumerate(tail)]
        assert score.tokens == pytest.approx(expected, abs=2e-3)
        assert score.total == pytest.approx(sum(expected), abs=2e-2)
    alone = logprobs_all(LocalEngine(base, max_batch=1), prompts[:4], texts[:4])
    assert [a.total for a in alone] == pytest.approx([s.total for s in scores[:4]], abs=1e-3)


def test_logprobs_of_nothing_or_of_too_much_are_errors(base):
    engine = LocalEngine(base)
    with pytest.raises(UserError, match="at least one token"):
        logprobs_all(engine, ["a"], [""])
    with pytest.raises(TooLong, match="context of sandbox"):
        logprobs_all(engine, ["word " * 1100], [" x"])
    with pytest.raises(TooLong, match="context of sandbox"):
        together([engine.choose("word " * 1100, (" A", " B"))])


def test_choose_is_the_difference_of_two_logprobs(base, prompts):
    engine, options = LocalEngine(base, max_batch=7), (" A", " B")
    chosen = together(engine.choose(p, options) for p in prompts)
    scored = {o: logprobs_all(engine, prompts, [o] * len(prompts)) for o in options}
    for i, found in enumerate(chosen):
        assert list(found) == list(options)
        a, b = (scored[o][i].total for o in options)
        assert found[" A"] - found[" B"] == pytest.approx(a - b, abs=1e-5)
        assert found[" A"] == pytest.approx(a, abs=1e-5) and found[" A"] < 0
    with pytest.raises(AssertionError, match="not single tokens"):
        together([engine.choose("x", (" A", " A sentence"))])


# ---- the scheduler ----


def every_kind(engine, prompts):
    """Requests of every kind, and of one kind with two samplings: (name, coroutine)."""
    for i, p in enumerate(prompts):
        yield f"answer {i}", engine.complete(p, ANSWER, i)
        yield f"short {i}", engine.complete(p, SHORT, i)
        yield f"letters {i}", engine.choose(p, (" A", " B"))
        yield f"score {i}", engine.logprobs(p, " It is so.")


def about(found):
    """The same scores, up to rounding."""
    if isinstance(found, dict):
        return pytest.approx(found, abs=1e-4)
    return Score(pytest.approx(found.total, abs=1e-4), pytest.approx(found.tokens, abs=1e-4))


def test_the_same_texts_whatever_is_in_flight_and_in_whatever_order(base, prompts):
    some = [*prompts[:6], *prompts[-2:]]

    def asked(engine, order, at_once):
        async def run():
            limit = asyncio.Semaphore(at_once)

            async def one(name, request):
                async with limit:
                    return name, await request

            requests = list(every_kind(engine, some))
            order(requests)
            return dict(await asyncio.gather(*(one(*r) for r in requests)))

        return asyncio.run(run())

    first = asked(LocalEngine(base, max_batch=64), lambda r: None, 999)
    assert len(first) == 4 * len(some)
    for order, at_once, max_batch in (
        (list.reverse, 999, 5),
        (random.Random(1).shuffle, 7, 5),
        (random.Random(2).shuffle, 1, 64),
    ):
        again = asked(LocalEngine(base, max_batch=max_batch), order, at_once)
        assert again.keys() == first.keys()
        for name, found in first.items():
            assert again[name] == (found if isinstance(found, Completion) else about(found)), name


def recorded(engine, monkeypatch):
    """Batches of an engine that does nothing: [(kind, [about])], and an order to follow from it."""
    batches = []

    def work(kind, result):
        def done(batch, *sampling):
            batches.append((kind, [r.about for r in batch]))
            return [result for _ in batch]

        return done

    text = Completion("x", 1, 1, "stop")
    monkeypatch.setattr(engine, "_generate", work("complete", text))
    monkeypatch.setattr(engine, "_next_token", work("choose", [0.0, 0.0]))
    return batches


def test_nothing_waits_for_ever(base, monkeypatch):
    """A single request of its kind, and a long one among short ones, are served although full batches of
    others keep coming."""
    engine = LocalEngine(base, max_batch=4)
    batches = recorded(engine, monkeypatch)

    async def run():
        waiting = [
            asyncio.ensure_future(engine.choose("a b", (" A", " B"))),
            asyncio.ensure_future(engine.complete("word " * 50, SHORT, 999)),
        ]

        async def stream():
            for seed in range(40 * local_engine.PATIENCE):
                if all(w.done() for w in waiting):
                    return
                await engine.complete("a", SHORT, seed)

        await asyncio.gather(*(stream() for _ in range(8)))
        return [w.done() for w in waiting]

    assert asyncio.run(run()) == [True, True]
    places = [i for i, (kind, about) in enumerate(batches) if kind == "choose" or 999 in about]
    assert len(places) == 2 and max(places) <= local_engine.PATIENCE + 2
    assert all(len(about) == 4 for kind, about in batches[: local_engine.PATIENCE] if kind == "complete")


def test_what_fills_a_batch_and_was_asked_last_goes_first(base, monkeypatch):
    engine = LocalEngine(base, max_batch=2)
    batches = recorded(engine, monkeypatch)
    letters = [engine.choose("a b", (" A", " B")) for _ in range(3)]
    together([*(engine.complete("a", SHORT, i) for i in range(4)), *letters])
    assert [(kind, len(about)) for kind, about in batches] == [
        ("choose", 2),
        ("complete", 2),
        ("complete", 2),
        ("choose", 1),
    ]


def test_an_error_reaches_the_caller_of_its_request_alone(base, prompts, monkeypatch):
    engine = LocalEngine(base)

    async def run():
        return await asyncio.gather(
            engine.complete(prompts[0], SHORT, 0),
            engine.complete(prompts[0], SHORT, 0, "nobody"),
            engine.logprobs("word " * 1100, " x"),
            engine.logprobs(prompts[0], ""),
            engine.choose(prompts[0], (" A", " B")),
            return_exceptions=True,
        )

    done, unknown, long, empty, letters = asyncio.run(run())
    assert done == complete_all(LocalEngine(base), prompts[:1], SHORT, [0])[0] and set(letters) == {
        " A",
        " B",
    }
    assert isinstance(unknown, UserError) and "no adapter 'nobody'" in str(unknown)
    assert isinstance(long, TooLong) and isinstance(empty, UserError)
    monkeypatch.setattr(engine, "_generate", lambda *a: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        complete_all(engine, prompts[:3], SHORT, range(3))
    assert together([engine.choose(prompts[0], (" A", " B"))]) == [pytest.approx(letters)]


def test_an_error_before_the_batch_reaches_its_callers_too(base, prompts, monkeypatch):
    engine = LocalEngine(base)
    monkeypatch.setattr(engine, "_rows_that_fit", lambda *a: 1 / 0)

    async def asked():
        return await asyncio.wait_for(engine.complete(prompts[0], SHORT, 0), 10)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(asked())


def test_cancelled_requests_are_dropped(base, monkeypatch):
    engine = LocalEngine(base, max_batch=2)
    batches = recorded(engine, monkeypatch)

    async def run():
        tasks = [asyncio.ensure_future(engine.complete("a", SHORT, i)) for i in range(6)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(run())
    assert [isinstance(f, asyncio.CancelledError) for f in found] == [True, False] * 3
    assert sorted(about for _, some in batches for about in some) == [1, 3, 5]


@pytest.mark.parametrize("breaks", [False, True])
def test_a_caller_that_goes_while_the_batch_runs_leaves_the_others_their_answers(base, monkeypatch, breaks):
    """As Ctrl-C does: the batch is whole, but nobody waits for some of it."""
    engine, tasks = LocalEngine(base), []

    def interrupted(batch, sampling):
        tasks[0].cancel()
        if breaks:
            raise RuntimeError("broken")
        return [Completion("x", 1, 1, "stop") for _ in batch]

    monkeypatch.setattr(engine, "_generate", interrupted)

    async def run():
        tasks.extend(asyncio.ensure_future(engine.complete("a", SHORT, i)) for i in range(3))
        return await asyncio.gather(*tasks, return_exceptions=True)

    gone, *others = asyncio.run(run())
    assert isinstance(gone, asyncio.CancelledError)
    assert [isinstance(o, RuntimeError if breaks else Completion) for o in others] == [True, True]
    assert engine._server.exception() is None


def test_a_batch_that_does_not_fit_the_memory_is_halved(base, prompts, monkeypatch):
    engine, sizes = LocalEngine(base, max_batch=16), []
    generate = engine._generate

    def small_memory(batch, *about):
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return generate(batch, *about)

    monkeypatch.setattr(engine, "_generate", small_memory)
    done = complete_all(engine, prompts[:10], SHORT, range(10))
    assert done == complete_all(LocalEngine(base), prompts[:10], SHORT, range(10))
    assert sizes[:3] == [10, 5, 2] and max(sizes[2:]) <= 3
    monkeypatch.setattr(
        engine, "_generate", lambda *a: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("x"))
    )
    with pytest.raises(UserError, match="no memory left for one row"):
        complete_all(engine, prompts[:2], SHORT, range(2))


def test_a_batch_takes_what_the_memory_holds_of_its_longest_row(base, monkeypatch):
    engine = LocalEngine(base, max_batch=64)
    config = base.model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    a_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head * 4
    row = 100 * a_token + config.vocab_size * 4 * 6
    monkeypatch.setattr(local_engine, "CPU_BUDGET", 10 * row)
    assert engine._rows_that_fit([90] * 30, 10) == 10 == engine._rows_that_fit([90, *[10] * 29], 10)
    assert engine._rows_that_fit([9000], 10) == 1


def test_usage_is_charged_to_the_step_that_asked(base, prompts):
    engine = LocalEngine(base)

    async def run():
        with charged_to("answer"):
            answers = [asyncio.ensure_future(engine.complete(p, SHORT, i)) for i, p in enumerate(prompts[:3])]
        with charged_to("judge"):
            letters = [asyncio.ensure_future(engine.choose(p, (" A", " B"))) for p in prompts[:2]]
        return await asyncio.gather(*answers), await asyncio.gather(*letters)

    answers, _ = asyncio.run(run())
    read = [len(base.tokenizer(p).input_ids) for p in prompts[:3]]
    assert set(engine.usage) == {"answer", "judge"}
    answer, judge = engine.usage["answer"], engine.usage["judge"]
    assert (answer.prompt_tokens, answer.completion_tokens) == (sum(read), sum(c.tokens for c in answers))
    assert (judge.prompt_tokens, judge.completion_tokens) == (sum(read[:2]), 0)
    assert answer.seconds > 0 and judge.seconds > 0


def test_one_engine_serves_one_event_loop_after_another(base, prompts):
    engine = LocalEngine(base)
    first = complete_all(engine, prompts[:3], SHORT, range(3))

    async def broken_off():
        asyncio.ensure_future(engine.complete(prompts[0], SHORT, 0))
        await asyncio.sleep(0)
        raise KeyError("the caller's own fault")

    with pytest.raises(KeyError):
        asyncio.run(broken_off())
    assert complete_all(engine, prompts[:3], SHORT, range(3)) == first
    assert complete_all(engine, [], SHORT, []) == []
