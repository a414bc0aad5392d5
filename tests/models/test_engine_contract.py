"""What every engine must do: the local one, and the one of servers before a test server. With
CAI_TEST_SERVER=URL[,URL...] the latter are servers of the sandbox that run elsewhere, such as vLLM's."""

import asyncio
import math
import os
import random

import pytest
import torch
from cai.core.errors import UserError
from cai.core.ledger import charged_to
from cai.models.engine import (
    Completion,
    Engine,
    Sampling,
    Score,
    TooLong,
    complete_all,
    logprobs_all,
    sampling,
    together,
)
from cai.models.loader import load
from cai.models.local_engine import LocalEngine
from cai.models.registry import REGISTRY
from cai.models.server_engine import FixedServers, ServerEngine
from cai.prompts.markers import STOPS
from cai.prompts.templates import Prompter
from sandbox_server import SandboxServer

PROMPTER = Prompter(0, False, 3)
ANSWER, SHORT = Sampling(0.7, 24, STOPS["answer"]), Sampling(0.7, 4)
ELSEWHERE = os.environ.get("CAI_TEST_SERVER", "")
# Nats that another implementation of the same float32 weights may differ by.
ROUNDING = 2e-3 if ELSEWHERE else 1e-4


@pytest.fixture(scope="module")
def prompts(sandbox_instructions):
    """Prompts of very different lengths: answers, and lists of instructions."""
    lists = [PROMPTER.instructions(sandbox_instructions[i : i + 3]) for i in range(8)]
    return [PROMPTER.answer(t) for t in sandbox_instructions[:24]] + lists


@pytest.fixture(scope="module")
def urls(base):
    if ELSEWHERE:
        yield ELSEWHERE.split(",")
    else:
        with SandboxServer(load(REGISTRY["sandbox"])) as server:
            yield [server.url]


def engine_of(kind, base, urls):
    if kind == "local":
        return LocalEngine(base, max_batch=500)
    own = {"bits": 16, "precision": "float32", "revision": base.revision, "device": "cpu"}
    return ServerEngine(base.spec, FixedServers(urls), base.tokenizer, **own)


@pytest.fixture(scope="module", params=["local", "server"])
def engine(request, base, urls):
    return engine_of(request.param, base, urls)


def test_it_says_what_the_contract_asks(engine, base):
    said = {name: getattr(engine, name) for name in Engine.__annotations__}
    name = said["name"]
    assert name in ("local", "server") and said["precision"] == "float32"
    assert (said["spec"], said["revision"], said["bits"]) == (base.spec, base.revision, 16)
    assert (said["caveat"] is None) == (name == "local") and said["device"] == "cpu"
    assert said["capacity"] > 1 and said["end_of_text"] == "<|endoftext|>" and said["chat"] is None
    assert said["adapters"] == {} and isinstance(said["usage"], dict)
    engine.release()


def test_greedy_texts_are_those_of_the_local_engine(engine, base, prompts):
    greedy = Sampling(0.0, 24, STOPS["answer"])
    asked = complete_all(engine, prompts, greedy, range(len(prompts)))
    assert asked == complete_all(LocalEngine(base), prompts, greedy, range(len(prompts)))


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


def test_the_seed_and_the_temperature_decide(engine, prompts):
    warm = Sampling(1.0, 24)
    assert len({c.text for c in complete_all(engine, [prompts[-1]] * 6, warm, range(6))}) > 3
    twice, once = (
        complete_all(engine, [prompts[0]] * 2, warm, [4, 4]),
        complete_all(engine, prompts[:1], warm, [4]),
    )
    assert twice == once * 2
    greedy = complete_all(engine, [prompts[0]] * 3, Sampling(0.0, 24), [1, 2, 3])
    assert greedy[0] == greedy[1] == greedy[2]


def test_samples_follow_the_models_distribution(engine, base, prompts):
    """One token, many seeds: the frequencies are the softmax at that temperature."""
    n = 1500 if engine.name == "local" else 400
    ids = base.tokenizer(prompts[-1], return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = base.model(input_ids=ids).logits[0, -1, : len(base.tokenizer)].float()
    probabilities = torch.softmax(logits / 0.7, -1)
    drawn = complete_all(engine, [prompts[-1]] * n, Sampling(0.7, 1), range(n))
    top = int(probabilities.argmax())
    p = float(probabilities[top])
    share = sum(c.text == base.tokenizer.decode([top]).strip() for c in drawn) / n
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / n) + 0.01


def test_how_a_text_ends(engine, prompts):
    [cut] = complete_all(engine, [prompts[-1]], Sampling(0.7, 3), [0])
    assert (cut.finish_reason, cut.ended_by, cut.tokens) == ("length", None, 3)
    [stopped] = complete_all(engine, [prompts[-1]], Sampling(0.7, 60, ("\n",)), [0])
    assert (stopped.finish_reason, stopped.ended_by) == ("stop", "\n") and "\n" not in stopped.text
    answers = complete_all(engine, prompts[:16], Sampling(0.7, 48, STOPS["answer"]), range(16))
    assert {c.finish_reason for c in answers} <= {"stop", "length"} and any(c.ended_by for c in answers)
    for c in answers:
        assert "Instruction:" not in c.text and "<|endoftext|>" not in c.text


def test_token_counts_are_those_of_the_tokenizer(engine, base, prompts):
    done = complete_all(engine, prompts[:12], Sampling(0.7, 48, ("\n",)), range(12))
    for prompt, c in zip(prompts, done, strict=False):
        assert c.prompt_tokens == len(base.tokenizer(prompt).input_ids)
        # 1: the end itself
        assert abs(c.tokens - len(base.tokenizer(f" {c.text}").input_ids)) <= 1 and 0 < c.tokens <= 48


def test_a_prompt_that_does_not_fit_is_reported_and_the_others_go_on(engine, prompts):
    done = complete_all(engine, ["word " * 1100, prompts[0]], Sampling(0.7, 8), [0, 1])
    assert done[0].finish_reason == "too_long" and done[0].text == "" and done[1].tokens > 0


@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>", "<|eot_id|>"])
def test_no_text_of_the_engine_holds_a_chat_token(engine, base, token, monkeypatch):
    """Even one that is spelt in pieces: a later prompt would be refused for it."""
    complete_all(engine, ["hello"], SHORT, [0])
    monkeypatch.setattr(base.tokenizer, "decode", lambda row, **more: f"Well. {token} x", raising=False)
    [done] = complete_all(engine, ["hello"], SHORT, [0])
    assert (done.text, done.finish_reason, done.ended_by) == ("Well.", "stop", token)


def test_logprobs_are_the_models_whatever_the_batch(engine, base, prompts):
    texts = [f" {'the ' * k}town<|endoftext|>" for k in range(len(prompts))]
    scores = logprobs_all(engine, prompts, texts)
    for prompt, text, score in list(zip(prompts, texts, scores, strict=True))[::7]:
        head, tail = base.tokenizer(prompt).input_ids, base.tokenizer(text).input_ids
        with torch.inference_mode():
            logp = torch.log_softmax(base.model(input_ids=torch.tensor([head + tail])).logits[0].float(), -1)
        expected = [float(logp[len(head) - 1 + i, t]) for i, t in enumerate(tail)]
        assert score.tokens == pytest.approx(expected, abs=2e-3)
        assert score.total == pytest.approx(sum(expected), abs=2e-2)
    alone = [logprobs_all(engine, [p], [t])[0].total for p, t in zip(prompts[:4], texts, strict=False)]
    assert alone == pytest.approx([s.total for s in scores[:4]], abs=1e-3)


def test_logprobs_of_nothing_or_of_too_much_are_errors(engine):
    with pytest.raises(UserError, match="at least one token"):
        logprobs_all(engine, ["a"], [""])
    with pytest.raises(TooLong, match="context of sandbox"):
        logprobs_all(engine, ["word " * 1100], [" x"])
    with pytest.raises(TooLong, match="context of sandbox"):
        together([engine.choose("word " * 1100, (" A", " B"))])


def test_choose_is_the_difference_of_two_logprobs(engine, prompts):
    options = (" A", " B")
    chosen = together(engine.choose(p, options) for p in prompts)
    scored = {o: logprobs_all(engine, prompts, [o] * len(prompts)) for o in options}
    for i, found in enumerate(chosen):
        assert list(found) == list(options)
        a, b = (scored[o][i].total for o in options)
        assert found[" A"] - found[" B"] == pytest.approx(a - b, abs=ROUNDING / 10)
        assert found[" A"] == pytest.approx(a, abs=ROUNDING / 10) and found[" A"] < 0
    with pytest.raises(AssertionError, match="not single tokens"):
        together([engine.choose("x", (" A", " A sentence"))])


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
        return pytest.approx(found, abs=ROUNDING)
    return Score(pytest.approx(found.total, abs=ROUNDING), pytest.approx(found.tokens, abs=ROUNDING))


def test_the_same_texts_whatever_is_in_flight_and_in_whatever_order(engine, prompts):
    some = [*prompts[:6], *prompts[-2:]]

    def asked(order, at_once):
        async def run():
            limit = asyncio.Semaphore(at_once)

            async def one(name, request):
                async with limit:
                    return name, await request

            requests = list(every_kind(engine, some))
            order(requests)
            return dict(await asyncio.gather(*(one(*r) for r in requests)))

        return asyncio.run(run())

    first = asked(lambda r: None, 999)
    assert len(first) == 4 * len(some)
    for order, at_once in (
        (list.reverse, 999),
        (random.Random(1).shuffle, 7),
        (random.Random(2).shuffle, 1),
    ):
        again = asked(order, at_once)
        assert again.keys() == first.keys()
        for name, found in first.items():
            assert again[name] == (found if isinstance(found, Completion) else about(found)), name


def test_an_error_reaches_the_caller_of_its_request_alone(engine, prompts):

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
    assert done == complete_all(engine, prompts[:1], SHORT, [0])[0] and set(letters) == {
        " A",
        " B",
    }
    assert isinstance(unknown, UserError) and "no adapter 'nobody'" in str(unknown)
    assert isinstance(long, TooLong) and isinstance(empty, UserError)


def test_usage_is_charged_to_the_step_that_asked(engine, base, prompts):

    engine.usage.clear()

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


def test_one_engine_serves_one_event_loop_after_another(engine, prompts):
    first = complete_all(engine, prompts[:3], SHORT, range(3))

    async def broken_off():
        asyncio.ensure_future(engine.complete(prompts[0], SHORT, 0))
        await asyncio.sleep(0)
        raise KeyError("the caller's own fault")

    with pytest.raises(KeyError):
        asyncio.run(broken_off())
    assert complete_all(engine, prompts[:3], SHORT, range(3)) == first
    assert complete_all(engine, [], SHORT, []) == []


# ---- adapters ----


def with_adapters(kind, urls, adapters):
    """An engine of its own model, with adapters "a" and "b"."""
    engine = engine_of(kind, load(REGISTRY["sandbox"]), urls)
    for name, saved in {"a": "one", "b": "two"}.items():
        engine.load_adapter(adapters[saved], name)
    return engine


@pytest.fixture(scope="module")
def adapted(urls, adapters):
    return {kind: with_adapters(kind, urls, adapters) for kind in ("local", "server")}


@pytest.mark.parametrize("kind", ["local", "server"])
def test_adapters_by_name_side_by_side(adapted, prompts, kind):
    """Rows of the base and of two adapters, asked for at once, are what each is alone."""
    engine, names = adapted[kind], (None, "a", "b")
    assert list(engine.adapters) == ["a", "b"] and len(set(engine.adapters.values())) == 2

    async def mixed():
        rows = [(p, i, name) for i, p in enumerate(prompts[:8]) for name in names]
        asked = (engine.complete(p, Sampling(0.0, 12), i, name) for p, i, name in rows)
        scored = (engine.logprobs(prompts[0], " It is so.", name) for name in names)
        return await asyncio.gather(*asked), await asyncio.gather(*scored)

    found, scores = asyncio.run(mixed())
    alone = [complete_all(adapted["local"], prompts[:8], Sampling(0.0, 12), range(8), name) for name in names]
    assert [found[k::3] for k in range(3)] == alone
    assert len({tuple(c.text for c in group) for group in alone}) == 3
    assert len({round(s.total, 3) for s in scores}) == 3
    expected = [logprobs_all(adapted["local"], prompts[:1], [" It is so."], name)[0].total for name in names]
    assert [s.total for s in scores] == pytest.approx(expected, abs=10 * ROUNDING)


@pytest.mark.parametrize("kind", ["local", "server"])
def test_an_adapter_that_is_missing_or_there_already_is_refused(adapted, adapters, tmp_path, kind):
    with pytest.raises(UserError, match="holds no adapter of ours"):
        adapted[kind].load_adapter(tmp_path, "c")
    with pytest.raises(UserError, match="'a' is loaded already"):
        adapted[kind].load_adapter(adapters["two"], "a")
    with pytest.raises(UserError, match="no adapter 'c' is loaded; there are: a, b"):
        complete_all(adapted[kind], ["x"], SHORT, [0], "c")
