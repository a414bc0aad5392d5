"""The engine of servers: what it refuses, what it tries again, what it does without; adapters."""

import argparse
import asyncio
import shutil
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from cai.core.errors import UserError
from cai.models import completions_api, endpoints, probe
from cai.models.completions_api import Fault, _number
from cai.models.endpoints import Endpoints
from cai.models.engine import Sampling, complete_all, logprobs_all, together
from cai.models.loader import load
from cai.models.local_engine import LocalEngine
from cai.models.registry import REGISTRY
from cai.models.server_engine import FixedServers, ServerEngine
from sandbox_server import SandboxServer

SHORT = Sampling(0.7, 8)
PROMPTS = [f"Instruction: Name {n} rivers.\nResponse:" for n in range(12)]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(endpoints, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(endpoints, "LONGEST_WAIT", 0.01)


@pytest.fixture
def server(base):
    with SandboxServer(base) as running:
        yield running


@pytest.fixture
def two(base):
    with SandboxServer(base) as one, SandboxServer(base) as other:
        yield one, other


def engine_of(base, *servers, **more):
    own = {"bits": 16, "precision": "float32", "revision": base.revision, "device": "cpu"} | more
    return ServerEngine(base.spec, FixedServers([s.url for s in servers]), base.tokenizer, **own)


def texts(engine, prompts=PROMPTS, **more):
    return complete_all(engine, prompts, SHORT, range(len(prompts)), **more)


def meet(engine):
    """Until every server has been checked: requests go out as soon as one has been."""

    async def run():
        await engine.complete(PROMPTS[0], SHORT, 0)
        while not all(endpoint.live for endpoint in engine._endpoints.endpoints):
            await asyncio.sleep(0.01)

    asyncio.run(run())


@pytest.fixture(scope="module")
def wanted(base):
    """What the local engine writes."""
    return texts(LocalEngine(base))


# ---- at the start ----


REFUSED = {
    "other_model": "serves someone/else, not models/sandbox at revision",
    "short_context": "reads 512 tokens, this run needs 1024",
    "other_tokenizer": "another tokenizer",
    "no_seed": "ignores the seed",
    "no_logprobs": "no log-probabilities",
    "no_token_ids": "a text without its tokens",
    "nan_logprobs": "a log-probability that is none",
    "flat_logprobs": "gives one token two log-probabilities",
    "untrained": "as unlikely as random tokens",
    "half_json": "an answer that is cut off or no JSON",
    "no_choices": "an answer without a choice",
    "error_400": "status 400: this prompt is not to the server's liking",
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_server_that_is_not_what_it_should_be_is_refused_at_the_start(base, server, fault):
    server.heal(**{fault: True})
    with pytest.raises(UserError, match=server.url) as refused:
        texts(engine_of(base, server))
    assert REFUSED[fault] in str(refused.value) and "\n" not in str(refused.value)
    server.heal()
    assert texts(engine_of(base, server), PROMPTS[:1])


def test_a_tokenizer_is_told_by_its_counts_where_it_cannot_be_asked(base, server):
    server.heal(no_tokenize=True)
    assert texts(engine_of(base, server), PROMPTS[:1])
    server.heal(no_tokenize=True, other_tokenizer=True)
    with pytest.raises(UserError, match="another tokenizer"):
        texts(engine_of(base, server))


def test_log_probabilities_are_held_against_those_that_the_model_had_here(
    base, server, tmp_path, monkeypatch
):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    server.heal(other_weights=True)
    assert texts(engine_of(base, server), PROMPTS[:1])  # nothing is known of it
    local = LocalEngine(base)
    probe.remember(local)
    values = probe.probe(local)
    assert probe.expected(base.spec, base.revision, 16, len(values)) == (pytest.approx(values), True)
    assert probe.expected(base.spec, base.revision, 16, len(values) + 1) is None  # another tokenizer's
    with pytest.raises(UserError, match="0.500 nats a token apart, at most 0.01 would be rounding"):
        texts(engine_of(base, server))
    with pytest.raises(UserError, match="at most 0.15"):
        texts(engine_of(base, server, precision="bfloat16"))
    for other in (("another", 16), (base.revision, 4)):
        assert probe.expected(base.spec, *other, len(values))[1] is False
    assert texts(engine_of(base, server, bits=8, precision="FP8, bfloat16"), PROMPTS[:1])
    assert probe.tolerance("FP8, bfloat16", same_bits=False) == probe.OTHER_BITS == 0.5
    server.heal()
    assert texts(engine_of(base, server), PROMPTS[:1])


def test_a_server_of_the_model_from_the_hubs_cache_is_known_by_name_and_commit(base, server):
    server.name = f"/cache/models--someone--sandbox/snapshots/{base.revision}"
    assert texts(engine_of(base, server), PROMPTS[:1])
    server.name = "/cache/models--someone--sandbox/snapshots/0123"
    with pytest.raises(UserError, match=f"not models/sandbox at revision {base.revision[:12]}"):
        texts(engine_of(base, server))


def test_a_server_that_nobody_runs_is_named(base, server, monkeypatch):
    monkeypatch.setattr(endpoints, "NEVER_SEEN", 0.0)
    server.heal(dead=True)
    said = []
    with pytest.raises(UserError, match=f"no server has answered for .*{server.url}: no connection"):
        texts(engine_of(base, server, log=said.append))
    assert len(said) == 1 and "is left out until it answers (no connection" in said[0]


def test_the_key_comes_from_the_environment_alone(base, server, monkeypatch):
    server.key, said = "sesame-1234", []
    monkeypatch.setenv("OPENAI_API_KEY", "sesame-1234")
    with pytest.raises(UserError, match="wants a key .status 401.: set CAI_API_KEY"):
        texts(engine_of(base, server))
    monkeypatch.setenv("CAI_API_KEY", "sesame-1234")
    engine = engine_of(base, server, log=said.append)
    assert texts(engine, PROMPTS[:1])
    server.heal(error_400=True)
    with pytest.raises(UserError) as refused:
        texts(engine)
    server.heal(says_key=True)
    with pytest.raises(UserError, match="not with Bearer <CAI_API_KEY>") as repeated:
        texts(engine)
    assert "sesame" not in f"{refused.value}{repeated.value}" + "".join(said)


def test_a_key_from_a_file_loses_its_lines_end_and_one_that_no_request_carries_is_not_said(
    base, server, monkeypatch
):
    server.key = "sesame-1234"
    monkeypatch.setenv("CAI_API_KEY", "sesame-1234\r\n")
    assert texts(engine_of(base, server), PROMPTS[:1])
    for key in ("sesame\r1234", "sesäme-1234"):
        monkeypatch.setenv("CAI_API_KEY", key)
        with pytest.raises(UserError, match="CAI_API_KEY holds characters that no request") as refused:
            engine_of(base, server)
        assert "1234" not in str(refused.value)


def test_a_server_of_very_many_models_is_a_sentence_not_a_page(base, server):
    server.name = "x" * 100_000
    with pytest.raises(UserError, match="serves xxx") as refused:
        texts(engine_of(base, server))
    assert len(str(refused.value)) < 500


def test_values_left_by_two_runs_at_once_are_all_there_and_a_full_disk_stops_nobody(
    base, tmp_path, monkeypatch
):
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    monkeypatch.setattr(probe, "probe", lambda engine: [-1.0])
    engines = [argparse.Namespace(spec=base.spec, bits=bits, revision="r") for bits in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(probe.remember, engines))
    assert all(probe.expected(base.spec, "r", e.bits, 1) == ([-1.0], True) for e in engines)
    monkeypatch.setenv("CAI_OUTPUT", "/proc/nowhere")
    probe.remember(engines[0])


def test_a_proxy_is_for_other_machines(base, server, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert texts(engine_of(base, server), PROMPTS[:1])


URLS = {
    "127.0.0.1:8000": "no URL of a server",
    "ftp://host": "no URL of a server",
    "http://": "no URL of a server",
    "http://host:port": "no URL of a server",
    "https://me:secret@host": "a key belongs into the environment variable CAI_API_KEY",
    "https://host?key=secret": "a key belongs into the environment variable CAI_API_KEY",
    "http://10.0.0.7:8000": "CAI_API_KEY would be sent unencrypted",
}


@pytest.mark.parametrize("url", URLS)
def test_urls_that_are_refused(url, monkeypatch):
    monkeypatch.setenv("CAI_API_KEY", "x")
    with pytest.raises(UserError, match=URLS[url]) as refused:
        FixedServers([url])
    assert "secret" not in str(refused.value)


def test_urls_are_taken_with_and_without_v1_and_once(monkeypatch):
    monkeypatch.delenv("CAI_API_KEY", raising=False)
    urls = ["http://10.0.0.7:8000/v1/", "https://host/gpu", "http://localhost:1"]
    assert FixedServers(urls).urls() == ["http://10.0.0.7:8000", "https://host/gpu", "http://localhost:1"]
    with pytest.raises(UserError, match="a server twice"):
        FixedServers(["http://a:1", "http://a:1/v1"])
    monkeypatch.setenv("CAI_API_KEY", "x")
    assert FixedServers(["https://host", "http://[::1]:8000", "http://127.0.0.1:8000"])


# ---- what is tried again ----


MENDED = ["half_json", "error_500", "drop", "no_choices", "no_token_ids", "bad_token_ids", "many_token_ids"]


@pytest.mark.parametrize("fault", [*MENDED, "deep_json", "packed", "endless"])
def test_what_another_try_mends_is_tried_again(base, server, wanted, fault, monkeypatch):
    monkeypatch.setattr(endpoints, "MOST_BYTES", 1_000_000)
    engine = engine_of(base, server)
    texts(engine, PROMPTS[:1])
    server.heal(**{fault: 2})
    assert texts(engine) == wanted
    assert server.faults == {fault: 0}


def test_a_number_that_is_none_is_asked_for_again(base, server):
    engine, options = engine_of(base, server), (" A", " B")
    expected = together([engine.choose(PROMPTS[0], options)])
    server.heal(nan_logprobs=2)
    assert together([engine.choose(PROMPTS[0], options)]) == expected and server.faults == {"nan_logprobs": 0}


def test_a_number_that_no_float_holds_is_none():
    with pytest.raises(Fault, match="a log-probability that is none"):
        _number(-(10**400))


def test_a_text_is_what_its_tokens_say_whatever_a_server_writes_beside_them(base, server):
    engine = engine_of(base, server)
    texts(engine, PROMPTS[:1])
    server.heal(own_text=True)
    for text in texts(engine):
        assert "im_start" not in text.text and "None" not in text.text


def test_an_answer_that_comes_byte_by_byte_is_not_waited_for_for_ever(monkeypatch):
    class Dripping:
        async def get(self, *about, **more):
            while True:
                await asyncio.sleep(0.001)

    monkeypatch.setattr(completions_api, "CONNECT_SECONDS", 0.01)
    with pytest.raises(Fault, match="no answer within 0 s") as fault:
        asyncio.run(completions_api.call(Dripping(), "http://a", seconds=0.01))
    assert fault.value.down


def test_a_server_that_never_mends_ends_the_run(base, server):
    engine = engine_of(base, server)
    texts(engine, PROMPTS[:1])
    server.heal(half_json=True)
    with pytest.raises(
        UserError, match="cut off or no JSON, again and again, and none did better: .* is kept"
    ):
        texts(engine, PROMPTS[:1])
    server.heal(error_400=True)
    before = len(server.requests)
    with pytest.raises(UserError, match="status 400"):
        texts(engine, PROMPTS[:1])
    assert len(server.requests) == before + 1  # what is refused is not asked again


def test_an_answer_that_one_server_fails_at_comes_from_another(base, two, wanted):
    engine = engine_of(base, *two)
    meet(engine)
    two[0].heal(half_json=True)
    assert texts(engine) == wanted


def test_a_server_that_dies_is_left_out_and_taken_back(base, two, wanted):
    said = []
    engine = engine_of(base, *two, log=said.append)
    meet(engine)
    two[0].heal(dead=True)

    async def run():
        async def all_of_them():
            return await asyncio.gather(*(engine.complete(p, SHORT, i) for i, p in enumerate(PROMPTS)))

        meanwhile = await all_of_them()
        two[0].heal()
        two[0].requests.clear()
        while not any("answers again" in line for line in said):
            await engine.complete(PROMPTS[0], SHORT, 0)
        return meanwhile, await all_of_them()

    assert asyncio.run(run()) == (wanted, wanted) and len(two[0].requests) > len(PROMPTS) / 3
    assert two[0].url in said[0] and "is left out until it answers" in said[0] and len(said) == 2


def test_without_any_server_the_requests_wait_until_one_is_back(base, server, wanted):
    def heard(line):
        said.append(line)
        if "is left out" in line:
            server.heal()

    said = []
    engine = engine_of(base, server, log=heard)
    texts(engine, PROMPTS[:1])
    server.heal(dead=True)
    assert texts(engine) == wanted and "answers again" in said[-1]


def test_when_all_servers_stay_away_the_run_ends_in_a_sentence(base, two, monkeypatch):
    engine = engine_of(base, *two)
    meet(engine)
    monkeypatch.setattr(endpoints, "GIVE_UP", 0.0)
    for server in two:
        server.heal(dead=True)
    with pytest.raises(UserError, match=f"{two[0].url}, {two[1].url}.* what is finished is kept"):
        texts(engine)


def test_random_weights_are_asked_to_be_nothing_else(base, server):
    """benchmark.py gpu measures them: their texts are noise, everything else is checked."""
    server.heal(untrained=True)
    assert texts(engine_of(base, server, noise=True), PROMPTS[:1])
    server.heal(untrained=True, other_model=True)
    with pytest.raises(UserError, match="serves someone/else"):
        texts(engine_of(base, server, noise=True))


def test_a_server_that_comes_back_as_another_model_ends_the_run(base, server):
    def heard(line):
        server.heal(other_model=True)

    engine = engine_of(base, server, log=heard)
    texts(engine, PROMPTS[:1])
    server.heal(dead=True)
    with pytest.raises(UserError, match="serves someone/else"):
        texts(engine)


def test_a_slow_server_keeps_nobody_else_waiting(base, two, wanted):
    engine = engine_of(base, *two, rows=4)  # which of the two is found first may take no more than these
    meet(engine)
    two[0].heal(hang=True)

    async def run():
        asked = [asyncio.ensure_future(engine.complete(p, SHORT, i)) for i, p in enumerate(PROMPTS)]
        while sum(t.done() for t in asked) < len(PROMPTS) / 2:
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED, timeout=0.01)
        two[0].heal()
        return await asyncio.gather(*asked)

    assert asyncio.run(run()) == wanted


# ---- what is asked ----


def test_what_does_not_fit_is_no_request(base, server):
    engine = engine_of(base, server)
    texts(engine, PROMPTS[:1])
    before = len(server.requests)
    [done] = complete_all(engine, ["word " * 1100], SHORT, [0])
    assert (done.finish_reason, done.text, done.tokens) == ("too_long", "", 0) and done.prompt_tokens > 1024
    assert len(server.requests) == before


def test_a_row_that_fills_the_context_is_scored_whole(base, server):
    word = " town"
    ids = base.tokenizer(word * 1023, add_special_tokens=False)["input_ids"]
    each = len(base.tokenizer(word, add_special_tokens=False)["input_ids"])
    assert len(ids) == 1023 * each
    engine, local = engine_of(base, server), LocalEngine(base)
    for tail in (1, 3):
        asked = ([word * (1024 // each - tail)], [word * tail])
        assert logprobs_all(engine, *asked)[0].tokens == pytest.approx(
            logprobs_all(local, *asked)[0].tokens, abs=1e-4
        )


@pytest.mark.parametrize("fault", [{}, {"no_option_ids": True}])
def test_options_that_are_unlikely_are_scored_exactly(base, server, fault):
    """Also by a server that gives the most likely tokens alone."""
    server.heal(**fault)
    options = (" A", " B", " river", " the")
    found, expected = (
        together(engine.choose(p, options) for p in PROMPTS)
        for engine in (engine_of(base, server), LocalEngine(base))
    )
    assert found == [pytest.approx(e, abs=1e-4) for e in expected]
    assert min(min(e.values()) for e in expected) < -8
    server.heal(no_option_ids=True, no_allowed=True)
    with pytest.raises(UserError, match="allowed_token_ids is ignored"):
        together([engine_of(base, server).choose(PROMPTS[0], options)])


def test_a_request_says_everything_that_a_server_would_fill_in(base, server):
    texts(engine_of(base, server), PROMPTS[:1])
    body = server.requests[-1]
    assert body["prompt"] == base.tokenizer(PROMPTS[0])["input_ids"] and body["seed"] == 0
    neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert neutral.items() <= body.items() and base.tokenizer.eos_token_id in body["stop_token_ids"]


def test_seconds_are_shared_by_what_is_in_flight_at_each_moment(base, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    engine = ServerEngine(
        base.spec,
        FixedServers(["http://127.0.0.1:1"]),
        base.tokenizer,
        bits=16,
        precision="float32",
        revision=None,
        device="cpu",
    )
    with engine._in_flight("answer"):
        now[0] = 2.0
        with engine._in_flight("judge"), engine._in_flight("judge"):
            now[0] = 5.0
        now[0] = 6.0
    now[0] = 100.0
    with engine._in_flight("judge"):
        now[0] = 101.0
    assert {step: used.seconds for step, used in engine.usage.items()} == {"answer": 4.0, "judge": 3.0}


def test_release_stops_the_servers_and_the_next_request_checks_them_again(base, server, wanted):
    class Ours(FixedServers):
        stopped = 0

        def stop(self):
            self.stopped += 1

    servers = Ours([server.url])
    own = {"bits": 16, "precision": "float32", "revision": base.revision, "device": "cpu"}
    engine = ServerEngine(base.spec, servers, base.tokenizer, **own)
    assert texts(engine) == wanted and servers.stopped == 0
    engine.release()
    assert servers.stopped == 1
    server.heal(no_seed=True)
    with pytest.raises(UserError, match="ignores the seed"):
        texts(engine)


def test_caveat_and_capacity(base, server):
    assert engine_of(base, server, deterministic=True).caveat is None
    assert "may differ" in engine_of(base, server).caveat


# ---- adapters ----


@pytest.fixture
def own():
    """A server of its own model, which may take up adapters."""
    with SandboxServer(load(REGISTRY["sandbox"])) as running:
        yield running


def test_rows_of_two_models_are_never_in_one_servers_batch(base, own, adapters):
    engine = engine_of(base, own, rows=4)
    engine.load_adapter(adapters["one"], "a")
    engine.load_adapter(adapters["two"], "b")

    async def run():
        names = [None, "a", "b"] * 8
        return await asyncio.gather(
            *(engine.complete(PROMPTS[0], SHORT, i, name) for i, name in enumerate(names))
        )

    asyncio.run(run())
    served = {body["model"] for body in own.requests}
    assert len(served) == 3 and own.mixed == set() and own.most == 4
    assert {name for name in served if name.startswith("adapter-")} == {
        f"adapter-{digest[:12]}" for digest in engine.adapters.values()
    }


def test_a_server_that_ignores_or_rejects_an_adapter_is_refused(base, own, adapters):
    own.heal(no_lora=True)
    engine = engine_of(base, own)
    with pytest.raises(UserError, match="does not load the adapter .*404.*--enable-lora --lora-modules"):
        engine.load_adapter(adapters["one"], "a")
    assert engine.adapters == {}
    own.heal(lora_ignored=True)
    engine.load_adapter(adapters["one"], "a")
    engine.load_adapter(adapters["new"], "new")
    assert texts(engine, adapter="new") == texts(engine)  # it changes nothing by itself
    with pytest.raises(UserError, match="answers with the base model where the adapter .* is asked for"):
        texts(engine, adapter="a")


def test_an_adapter_that_is_served_already_is_not_loaded_again(base, own, adapters):
    engine_of(base, own).load_adapter(adapters["one"], "a")
    own.heal(no_lora=True)
    engine = engine_of(base, own)
    engine.load_adapter(adapters["one"], "other name")
    assert texts(engine, adapter="other name") != texts(engine)


def test_a_server_that_was_started_anew_gets_its_adapters_again(base, own, adapters):
    engine = engine_of(base, own, log=lambda line: None)
    engine.load_adapter(adapters["one"], "a")
    before = texts(engine, adapter="a")
    [served] = own.adapters
    own.adapters.clear()
    own._engine._model.model.delete_adapter(served), own._engine._model.adapters.clear()
    own._engine._model.model = own._engine._model.model.unload()
    assert texts(engine, adapter="a") == before and list(own.adapters) == [served]


def test_an_adapter_that_was_changed_meanwhile_is_not_loaded_under_its_old_name(
    base, own, adapters, tmp_path
):
    path = tmp_path / "changed"
    shutil.copytree(adapters["one"], path)
    engine = engine_of(base, own, log=lambda line: None)
    engine.load_adapter(path, "a")
    texts(engine, adapter="a")
    own.adapters.clear()  # it was started anew ...
    shutil.rmtree(path)
    shutil.copytree(adapters["two"], path)  # ... and the run was trained anew
    with pytest.raises(UserError, match="is another one than when this run began: restore it"):
        texts(engine, adapter="a")


def test_an_adapters_check_that_was_broken_off_is_made_again(base, own, adapters):
    engine = engine_of(base, own)
    engine.load_adapter(adapters["one"], "a")
    texts(engine, PROMPTS[:1])
    own.heal(hang=True)

    async def broken_off():
        asyncio.ensure_future(engine.complete(PROMPTS[0], SHORT, 0, "a"))
        while not engine._checks._shown:
            await asyncio.sleep(0)
        raise KeyError("the caller's own fault")

    with pytest.raises(KeyError):
        asyncio.run(broken_off())
    own.heal()
    assert texts(engine, adapter="a") != texts(engine)


def test_adapters_are_loaded_on_every_server_and_those_away_get_them_later(base, two, adapters, monkeypatch):
    servers = FixedServers([s.url for s in two])
    two[0].heal(dead=True)
    monkeypatch.setattr(SandboxServer, "_load", no_work)
    servers.load_adapter(adapters["one"], "adapter-x")
    assert list(two[1].adapters) == ["adapter-x"] and not two[0].adapters
    two[1].heal(dead=True)
    with pytest.raises(UserError, match="none of the servers answers"):
        servers.load_adapter(adapters["one"], "adapter-x")


async def no_work(*about):
    pass


# ---- who gets what ----


class Trusting:
    """Checks that every server passes."""

    seen = True

    async def admit(self, endpoint, client):
        endpoint.model = "base"

    def gone(self, url):
        pass


def shares(urls, rows, requests):
    """requests: adapters, in the order in which they ask. (place, adapter) in the order in which each is
    begun; how many of each adapter a server ever had at a time."""
    begun, flying, most = [], {url: Counter() for url in urls}, Counter()

    async def run():
        pool = Endpoints(lambda: urls, Trusting(), rows, print)

        async def one(place, adapter):
            async def work(endpoint, client):
                begun.append((place, adapter))
                here = flying[endpoint.url]
                here[adapter] += 1
                assert len(+here) == 1, "two models on one server"
                most[endpoint.url] = max(most[endpoint.url], here.total())
                for _ in range(3):
                    await asyncio.sleep(0)
                here[adapter] -= 1

            await pool.ask(adapter, work)

        await asyncio.gather(*(one(*request) for request in enumerate(requests)))

    asyncio.run(run())
    return begun, most


def test_requests_go_to_the_least_loaded_server_up_to_its_rows():
    begun, most = shares(["http://a", "http://b"], 3, [None] * 20)
    assert [place for place, _ in begun] == list(range(20)) and most == {"http://a": 3, "http://b": 3}


@pytest.mark.parametrize("urls", [["http://a"], ["http://a", "http://b"]])
def test_an_adapters_request_does_not_wait_for_ever(urls):
    """Base requests keep coming; the adapter's gets a server once it has let PATIENCE batches pass."""
    requests = [*[None] * 8, "x", *[None] * 200]
    begun, _ = shares(urls, 4, requests)
    place = next(i for i, (_, adapter) in enumerate(begun) if adapter == "x")
    assert place <= endpoints.PATIENCE * 4 + 8 + 4 * len(urls) and len(begun) == len(requests)
    assert begun[place - 1][1] is None and place > 8


def test_requests_that_are_cancelled_give_their_place_to_others():
    done = []

    async def run():
        pool = Endpoints(lambda: ["http://a"], Trusting(), 2, print)

        async def work(endpoint, client):
            await asyncio.sleep(0)

        async def one(number):
            await pool.ask(None, work)
            done.append(number)

        tasks = [asyncio.ensure_future(one(n)) for n in range(12)]
        while not done:
            await asyncio.sleep(0)
        for task in tasks[4:8]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return [e.flying for e in pool.endpoints]

    assert asyncio.run(run()) == [0] and done == [0, 1, 2, 3, 8, 9, 10, 11]
