"""The server that only takes time, and the loop before it."""

import pytest
from cai.models.engine import Sampling, complete_all
from cai.models.registry import REGISTRY
from cai.models.server_engine import FixedServers, ServerEngine
from cai.preflight import benchmarks, simulated_server
from cai.preflight.simulated_server import SimulatedServer
from cai.prompts.markers import CHANGE


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name in ("STEP", "A_ROW", "A_PROMPT_TOKEN"):
        monkeypatch.setattr(simulated_server, name, 0.0)


def test_it_batches_what_is_there_up_to_its_rows(base, monkeypatch):
    monkeypatch.setattr(simulated_server, "MOST_ROWS", 5)
    own = {"bits": 16, "precision": "none", "revision": None, "device": "simulated", "rows": 12}
    with SimulatedServer("models/sandbox", base.tokenizer, ["town", "river"]) as server:
        engine = ServerEngine(REGISTRY["sandbox"], FixedServers([server.url]), base.tokenizer, **own)
        prompts = ["Response: x\nCritique:", "Response:"] * 6
        found = complete_all(engine, prompts, Sampling(0.7, 40), range(12))
    assert max(server.rows) == 5
    assert {c.text.endswith(CHANGE) for c in found[::2]} == {True}
    assert {CHANGE in c.text for c in found[1::2]} == {False}
    assert all(40 * simulated_server.SHORTEST - 1 <= c.tokens <= 40 and c.ended_by == "<eos>" for c in found)
    assert len({c.tokens for c in found}) > 3


def test_the_loop_before_it_takes_every_step_and_the_same_requests_are_fired_again():
    found = next(benchmarks.server_rates(6, 0, servers=2, rows=3))
    assert (found["examples"], found["in_flight"]) == (6, 6)
    # answer, critique, revision; by the principle and by helpfulness a reason and its letters, in both orders
    assert found["requests"] == 6 * (3 + 2 * 2 * 2)
    assert found["ratio"] == pytest.approx(found["flat_seconds"] / found["loop_seconds"], rel=0.2)
