import math

import pytest
import torch
from cai.core.errors import UserError
from cai.models.engine import Sampling
from cai.models.local_engine import LocalEngine
from cai.prompts.markers import STOPS
from cai.prompts.templates import Prompter

PROMPTER = Prompter(0, False, 3)


@pytest.fixture(scope="module")
def prompts(sandbox_instructions):
    """Prompts of very different lengths: answers, and lists of instructions."""
    lists = [PROMPTER.instructions(sandbox_instructions[i : i + 3]) for i in range(8)]
    return [PROMPTER.answer(t) for t in sandbox_instructions[:24]] + lists


def test_a_rows_text_does_not_depend_on_its_batch(base, prompts):
    sampling, seeds = Sampling(0.7, 24, STOPS["answer"]), list(range(len(prompts)))
    together = LocalEngine(base, max_batch=64).complete(prompts, sampling, seeds)
    alone = [
        LocalEngine(base, max_batch=1).complete([p], sampling, [s])[0]
        for p, s in zip(prompts, seeds, strict=True)
    ]
    by_five = LocalEngine(base, max_batch=5).complete(prompts[::-1], sampling, seeds[::-1])[::-1]
    assert together == alone == by_five


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
    engine = LocalEngine(base)
    texts = {engine.complete([prompts[-1]], Sampling(1.0, 24), [s])[0].text for s in range(6)}
    assert len(texts) > 3
    assert (
        engine.complete([prompts[0]] * 2, Sampling(1.0, 24), [4, 4])[0]
        == engine.complete([prompts[0]], Sampling(1.0, 24), [4])[0]
    )
    greedy = engine.complete([prompts[0]] * 3, Sampling(0.0, 24), [1, 2, 3])
    assert greedy[0] == greedy[1] == greedy[2]


def test_samples_follow_the_models_distribution(base, prompts):
    """One token, many seeds: the frequencies are the softmax at that temperature."""
    engine, n = LocalEngine(base, max_batch=500), 1500
    ids = base.tokenizer(prompts[-1], return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = base.model(input_ids=ids).logits[0, -1, : len(base.tokenizer)].float()
    probabilities = torch.softmax(logits / 0.7, -1)
    drawn = engine.complete([prompts[-1]] * n, Sampling(0.7, 1), list(range(n)))
    top = int(probabilities.argmax())
    p = float(probabilities[top])
    share = sum(c.text == base.tokenizer.decode([top]).strip() for c in drawn) / n
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / n) + 0.01


def test_how_a_text_ends(base, prompts):
    engine = LocalEngine(base)
    [cut] = engine.complete([prompts[-1]], Sampling(0.7, 3), [0])
    assert (cut.finish_reason, cut.ended_by, cut.tokens) == ("length", None, 3)
    [stopped] = engine.complete([prompts[-1]], Sampling(0.7, 60, ["\n"]), [0])
    assert (stopped.finish_reason, stopped.ended_by) == ("stop", "\n") and "\n" not in stopped.text
    answers = engine.complete(prompts[:16], Sampling(0.7, 48, STOPS["answer"]), range(16))
    assert {c.finish_reason for c in answers} <= {"stop", "length"} and any(c.ended_by for c in answers)
    for c in answers:
        assert "Instruction:" not in c.text and "<|endoftext|>" not in c.text


def test_token_counts_are_those_of_the_tokenizer(base, prompts):
    engine = LocalEngine(base)
    done = engine.complete(prompts[:12], Sampling(0.7, 48, ["\n"]), range(12))
    for prompt, c in zip(prompts, done, strict=False):
        assert c.prompt_tokens == len(base.tokenizer(prompt).input_ids)
        assert (
            abs(c.tokens - len(base.tokenizer(f" {c.text}").input_ids)) <= 1 and 0 < c.tokens <= 48
        )  # 1: the end itself


def test_a_prompt_that_does_not_fit_is_reported_and_the_others_go_on(base, prompts):
    done = LocalEngine(base).complete(["word " * 1100, prompts[0]], Sampling(0.7, 8), [0, 1])
    assert done[0].finish_reason == "too_long" and done[0].text == "" and done[1].tokens > 0


@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>", "<|eot_id|>"])
def test_a_base_model_never_sees_a_chat_token(base, token):
    with pytest.raises(UserError, match="chat token"):
        LocalEngine(base).complete([f"hello {token}"], Sampling(), [0])
    with pytest.raises(UserError, match="chat token"):
        LocalEngine(base).logprobs([f"hello {token}"], [" x"])


def test_a_checkpoints_own_sampling_settings_do_not_slip_in(base):
    base.model.generation_config.top_k, base.model.generation_config.repetition_penalty = 1, 5.0
    config = LocalEngine(base).model.model.generation_config
    assert config.top_k in (None, 50) and config.repetition_penalty in (None, 1.0)


def test_logprobs_are_the_models_whatever_the_batch(base, prompts):
    texts = [f" {'the ' * k}town<|endoftext|>" for k in range(len(prompts))]
    scores = LocalEngine(base, max_batch=16).logprobs(prompts, texts)
    for prompt, text, score in list(zip(prompts, texts, scores, strict=True))[::7]:
        head, tail = base.tokenizer(prompt).input_ids, base.tokenizer(text).input_ids
        with torch.inference_mode():
            logp = torch.log_softmax(base.model(input_ids=torch.tensor([head + tail])).logits[0].float(), -1)
        expected = [float(logp[len(head) - 1 + i, t]) for i, t in enumerate(tail)]
        assert score.tokens == pytest.approx(expected, abs=2e-3) and score.total == pytest.approx(
            sum(expected), abs=2e-2
        )
    alone = LocalEngine(base, max_batch=1).logprobs(prompts[:4], texts[:4])
    assert [a.total for a in alone] == pytest.approx([s.total for s in scores[:4]], abs=1e-3)


def test_logprobs_of_nothing_or_of_too_much_are_errors(base):
    with pytest.raises(UserError, match="at least one token"):
        LocalEngine(base).logprobs(["a"], [""])
    with pytest.raises(UserError, match="context of sandbox"):
        LocalEngine(base).logprobs(["word " * 1100], [" x"])


def test_a_batch_that_does_not_fit_the_memory_is_halved(base, prompts, monkeypatch):
    engine, sizes = LocalEngine(base, max_batch=16), []
    generate = engine._generate

    def small_memory(batch, *about):
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return generate(batch, *about)

    monkeypatch.setattr(engine, "_generate", small_memory)
    done = engine.complete(prompts[:10], Sampling(0.7, 4), range(10))
    assert None not in done and max(sizes[3:]) <= 3 and sizes[0] == 10
    monkeypatch.setattr(
        engine, "_generate", lambda *a: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("x"))
    )
    with pytest.raises(UserError, match="no memory left for one row"):
        engine.complete(prompts[:2], Sampling(0.7, 4), range(2))


def test_progress_is_reported_after_each_batch(base, prompts):
    seen = []
    LocalEngine(base, max_batch=4, progress=lambda done, n: seen.append((done, n))).complete(
        prompts[:10], Sampling(0.7, 2), range(10)
    )
    assert seen == [(4, 10), (8, 10), (10, 10)]
