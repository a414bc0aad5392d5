"""The local engine: what a batch does, and the scheduler that fills batches from what waits."""

import asyncio

import pytest
import torch
from cai.core.errors import UserError
from cai.models import local_engine
from cai.models.engine import (
    Completion,
    Sampling,
    complete_all,
    together,
)
from cai.models.local_engine import LocalEngine
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


def test_the_roomy_cache_holds_what_transformers_own_cache_holds():
    from cai.models.kv_cache import STEP, RoomyLayer
    from transformers.cache_utils import DynamicLayer

    roomy, plain = RoomyLayer(), DynamicLayer()
    for length in (5, 1, 1, STEP, 1, 3 * STEP):
        keys, values = torch.randn(2, 3, length, 4), torch.randn(2, 3, length, 4)
        for mine, theirs in zip(roomy.update(keys, values), plain.update(keys, values), strict=True):
            assert torch.equal(mine, theirs)
        assert roomy.get_seq_length() == plain.get_seq_length()


def test_a_cache_that_unsloth_keeps_on_a_gpu_goes_with_its_batch(base):
    """Till the next forward pass it would: rows that the memory takes are reckoned before that."""
    import importlib.util
    import re
    from pathlib import Path

    from cai.models.kv_cache import UNSLOTHS

    source = Path(importlib.util.find_spec("unsloth").origin).with_name("models") / "llama.py"
    forward = source.read_text().partition("\ndef LlamaAttention_fast_forward(\n")[2]
    assert set(re.findall(r"del self\.(\w+)", forward.partition("bsz, q_len")[0])) == set(UNSLOTHS)
    layer = base.model.model.layers[0].self_attn
    for name in UNSLOTHS:
        setattr(layer, name, torch.zeros(1))
    complete_all(LocalEngine(base), ["Say something."], SHORT, [0])
    assert not vars(layer).keys() & set(UNSLOTHS)


def test_a_checkpoints_own_sampling_settings_do_not_slip_in(base):
    base.model.generation_config.top_k, base.model.generation_config.repetition_penalty = 1, 5.0
    LocalEngine(base)
    config = base.model.generation_config
    assert config.top_k in (None, 50) and config.repetition_penalty in (None, 1.0)


# ---- the scheduler ----


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


def test_an_error_of_a_batch_reaches_its_callers_alone(base, prompts, monkeypatch):
    engine = LocalEngine(base)
    letters = together([engine.choose(prompts[0], (" A", " B"))])[0]
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
