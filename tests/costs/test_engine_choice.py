"""Which engine is taken, and the forecasts that decide it. vllm_server's figures are fixed here."""

import argparse

import generate_full
import generate_mvp
import pytest
from cai.core.errors import UserError
from cai.core.jsonl import append
from cai.core.run import Run
from cai.costs import engine_choice
from cai.costs.default_rates import MACHINES, machine_of
from cai.costs.engine_choice import choose_engine, milestone_forecast, weights_of, with_server
from cai.costs.forecast import forecast
from cai.costs.units import UNITS, Weights, local, milestone_units, on_server
from cai.models import device, fit, vllm_environment, vllm_server
from cai.models.fit import beside_gb
from cai.models.registry import REGISTRY

BIG, SANDBOX, GUARD = (REGISTRY[m] for m in ("Qwen/Qwen2.5-32B", "sandbox", "meta-llama/Llama-Guard-3-8B"))
A100 = "NVIDIA A100-SXM4-80GB"
ONCE = {"download", "installing", "loading"}
FP8, FULL, NF4 = Weights("vllm", 8), Weights("vllm", 16), Weights("local", 4)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An A100 with nothing installed and nothing in its cache, and room for everything."""
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    gpu = device.Gpu(A100, "580.1", 80e9, 80e9, (8, 0))
    monkeypatch.setattr(device, "visible_gpus", lambda: [gpu])
    monkeypatch.setattr(device, "disk_free", lambda path: 500e9)
    monkeypatch.setattr(vllm_server, "ENVIRONMENT_GB", 12.0)
    monkeypatch.setattr(vllm_server, "START_SECONDS", 240.0)
    monkeypatch.setattr(vllm_server, "environment_ready", lambda: False)
    monkeypatch.setattr(vllm_server, "serving_bits", serving_bits)
    return tmp_path


def serving_bits(spec, bits, gpu_memory_gb, *, beside_gb=0.0):
    free = gpu_memory_gb - beside_gb - (5 if bits else 15)
    for each in [bits] if bits else (16, 8, 4):
        if spec.parameters * {16: 2.0, 8: 1.0, 4: 0.6}[each] <= free:
            return each
    raise UserError(f"{spec.name} does not fit into {gpu_memory_gb:.0f} GB beside {beside_gb:.0f} GB")


def work(examples=5000, steps=1000, **more):
    return local(4, milestone_units(examples, principles=1, steps=steps, **more))


def test_a_large_run_goes_to_vllm_in_the_precision_that_fits_and_the_sentence_has_the_figures():
    chosen = choose_engine(BIG, work(), hourly_rate=1.74)
    assert (chosen.engine, chosen.bits) == ("vllm", 8)
    there = forecast(BIG, with_server(BIG, work(), FP8), examples=1, device=A100, ledger=[])
    here = forecast(BIG, work(), examples=1, device=A100, ledger=[])
    assert there.dollars < 0.5 * here.dollars
    assert f"vLLM FP8 would take 7 h 29 min, ${there.dollars:.2f}" in chosen.why
    assert f"local NF4 would take 20 h 09 min, ${here.dollars:.2f}" in chosen.why


def test_a_short_run_stays_here_since_download_and_starts_would_cost_more(here, monkeypatch):
    few = work(10, steps=1)
    assert choose_engine(BIG, few, hourly_rate=1.74).engine == "local"
    monkeypatch.setattr(vllm_server, "environment_ready", lambda: True)
    monkeypatch.setattr(device, "cached", lambda repo, revision=None: True)
    assert choose_engine(BIG, few, hourly_rate=1.74).engine == "vllm"  # nothing is left to be fetched


def test_what_was_measured_decides(here):
    (here / "logs").mkdir()
    slow = {"run": "old", "step": "judge", "seconds": 1e5, "dollars": 0.0, "examples": 100, "principles": 1}
    slow |= {"model": BIG.name, "device": A100}
    append(here / "logs/ledger.jsonl", [slow | {"bits": 8, "engine": "vllm"}])
    chosen = choose_engine(BIG, work(), hourly_rate=1.74)
    assert chosen.engine == "local"
    append(here / "logs/ledger.jsonl", [slow | {"bits": 4}])  # of a time before engines: local
    assert choose_engine(BIG, work(), hourly_rate=1.74).engine == "vllm"


def test_without_a_gpu_without_room_and_without_disk_it_is_local_and_says_which(monkeypatch):
    assert choose_engine(BIG, work(), device="cpu").why == "local: no GPU here"
    small = choose_engine(BIG, work(), device="NVIDIA GeForce RTX 4090")
    assert small.engine == "local" and "does not fit into 26 GB" in small.why
    unknown = REGISTRY["Qwen/Qwen2.5-32B"].__class__("some/model", "some/model")
    assert "nobody has said how large" in choose_engine(unknown, work()).why
    monkeypatch.setattr(device, "disk_free", lambda path: 70e9)
    short = choose_engine(BIG, work())
    assert short.engine == "local" and "need more disk than the 70 GB" in short.why
    elsewhere = choose_engine(BIG, work(), device="NVIDIA A100 80GB PCIe")
    assert elsewhere.engine == "vllm"  # its disk is not this one


def test_a_driver_that_does_not_run_vllm_keeps_the_work_here(monkeypatch):
    monkeypatch.setattr(vllm_environment, "cuda_major", lambda: 12)
    chosen = choose_engine(BIG, work())
    assert chosen.engine == "local" and "this driver runs CUDA 12" in chosen.why
    with pytest.raises(UserError, match="built for CUDA 13"):
        choose_engine(BIG, work(), asked="vllm")
    assert choose_engine(BIG, work(), device="NVIDIA A100 80GB PCIe").engine == "vllm"  # another machine's


def test_the_weights_that_training_loads_need_their_disk_too(monkeypatch):
    monkeypatch.setattr(device, "disk_free", lambda path: 84e9)  # 69 GB and 12 GB, but not 21 GB more
    assert "training's weights (89 GB)" in engine_choice.disk_short(BIG, 8)
    monkeypatch.setattr(device, "cached", lambda repo, revision=None: repo == BIG.source(4)[0])
    monkeypatch.setattr(fit, "cached", device.cached)
    assert engine_choice.disk_short(BIG, 8) == ""


def test_two_disks_are_looked_at_one_by_one(monkeypatch, here):
    monkeypatch.setattr(device, "same_disk", lambda one, other: False)
    monkeypatch.setattr(device, "disk_free", lambda path: 95e9 if path == device.cache_dir() else 13e9)
    assert engine_choice.disk_short(BIG, 8) == ""  # 89 GB and 12 GB, which together would be too much
    monkeypatch.setattr(vllm_server, "ENVIRONMENT_GB", 14.0)
    assert "13 GB that are free" in engine_choice.disk_short(BIG, 8)


def test_the_guard_needs_its_room_too():
    assert choose_engine(BIG, work(guard=True), guard=GUARD).bits == 8
    with pytest.raises(UserError, match="does not fit into 80 GB beside 20 GB"):
        choose_engine(BIG, work(), asked="vllm", engine_bits=16, guard=GUARD)
    # A model that guards what it writes itself is there once.
    assert choose_engine(BIG, work(), asked="vllm", engine_bits=16, guard=BIG).bits == 16
    assert milestone_forecast(flags(engine="vllm"), 1, 10, BIG).choice.beside_gb == 0
    assert milestone_forecast(flags(engine="vllm"), 1, 10, GUARD).choice.beside_gb == beside_gb(GUARD)
    assert weights_of(choose_engine(BIG, work(), asked="vllm", engine_bits=16)) == FULL


def test_what_is_asked_for_is_taken():
    assert weights_of(choose_engine(BIG, work(10), asked="vllm")) == FP8
    assert choose_engine(SANDBOX, work(10), asked="vllm", device="cpu").engine == "vllm"
    assert weights_of(milestone_forecast(flags(engine="vllm"), 1, 10).choice) == FP8
    assert weights_of(milestone_forecast(flags(engine="vllm", engine_bits=4), 1, 10).choice) == ("vllm", 4)
    assert weights_of(milestone_forecast(flags(engine="auto", deterministic=True), 1000, 5000).choice) == FULL


def test_servers_of_somebody_else_cost_no_start_and_no_download():
    ahead = milestone_forecast(flags(engine="http://a:8000,http://b:8000", engine_bits=8), 10, 100)
    lines = {(x.step, x.engine, x.bits) for x in ahead.lines}
    assert ("answer", "server", 8) in lines and ("training", "local", 4) in lines
    assert {step for step, engine, _ in lines if engine == "server"}.isdisjoint(ONCE)
    assert ahead.disk["weights"][0] == pytest.approx(19.66e9, rel=1e-3)  # training's


def test_a_run_that_has_begun_keeps_its_engine(here):
    with Run.open("full", {"engine": "server", "engine_bits": 8}):
        pass
    ahead = milestone_forecast(flags(engine="auto"), 1, 10)
    assert weights_of(ahead.choice) == FP8 and ("answer", "vllm") in {(x.step, x.engine) for x in ahead.lines}


def test_a_flag_that_was_given_is_not_ignored_where_a_run_has_begun(here):
    with Run.open("full", {"engine": "server", "engine_bits": 8}) as run:
        (run.data / "records.jsonl").write_text("{}\n")
    for own, differing in (
        ({"engine_bits": 16}, "engine_bits was 8, now 16"),
        ({"deterministic": True}, "deterministic was"),
    ):
        choice = milestone_forecast(flags(engine="auto", **own), 1, 10).choice
        with pytest.raises(UserError, match=differing):
            Run.open("full", choice.settings())
    Run.open("full", milestone_forecast(flags(engine="auto"), 1, 10).choice.settings()).__exit__()


def test_what_would_be_left_out_of_the_flags_is_refused(here):
    with pytest.raises(UserError, match="are of a server, and this run has none"):
        milestone_forecast(flags(engine="auto", model="sandbox", engine_bits=8), 1, 10)
    for urls in ("http://127.0.0.1:99999", "http://a,http://a/", "http://[::1::2]"):
        with pytest.raises(UserError, match="no URL of a server|a server twice"):
            milestone_forecast(flags(engine=urls), 1, 10)


def test_a_run_that_began_with_servers_asks_for_them_where_none_can_be_started(monkeypatch):
    with Run.open("full", {"engine": "server", "engine_bits": 16}) as run:
        assert milestone_forecast(flags(engine="auto"), 1, 10).choice.engine == "vllm"
        run.record(engine="server")  # somebody else's: there is one to go on with
        with pytest.raises(UserError, match="give --engine the URLs"):
            milestone_forecast(flags(engine="auto"), 1, 10)
        run.record(engine="vllm")
    monkeypatch.setattr(device, "visible_gpus", list)
    monkeypatch.delenv(vllm_environment.OWN, raising=False)
    with pytest.raises(UserError, match="give --engine the URLs"):
        milestone_forecast(flags(engine="auto"), 1, 10)
    assert milestone_forecast(flags(engine="http://a:8000"), 1, 10).lines


# ---- the work with a server ----


def test_a_server_generates_and_evaluates_training_is_local_and_each_step_is_done_once():
    units = work(100, steps=10, guard=True)
    placed = on_server(units, FP8)
    assert placed[NF4] == {"loading": 1, "training": 10}
    assert placed[FP8] == {s: n for s, n in units[NF4].items() if s not in ("training", "loading")} | {
        "loading": 1  # again, after the training
    }
    whole = with_server(BIG, units, FP8)
    assert whole[FP8]["loading"] == 2 and whole[FP8]["installing"] == 1
    assert whole[FP8]["download"] == pytest.approx(65.5, abs=0.1)  # the 16-bit repository
    assert with_server(BIG, units, Weights("vllm", 4))[Weights("vllm", 4)]["download"] == 0  # training's own
    without = on_server(work(0, steps=0), FP8)
    assert list(without) == [FP8] and "loading" not in without[FP8]
    there = with_server(BIG, units, Weights("server", 16))
    assert not {"download", "installing", "loading"} & there["server", 16].keys()


def test_what_is_cached_is_not_fetched_again(monkeypatch):
    monkeypatch.setattr(device, "cached_bytes", lambda repo: 60e9 if repo == BIG.repo else 0)
    assert with_server(BIG, work(), FP8)[FP8]["download"] == pytest.approx(5.5, abs=0.1)
    monkeypatch.setattr(device, "cached", lambda repo, revision=None: repo == BIG.repo)
    assert with_server(BIG, work(), FP8)[FP8]["download"] == 0
    assert with_server(SANDBOX, work(), FP8)[FP8]["download"] == 0  # of this checkout


def test_download_installing_and_starts_are_lines_with_time_and_disk():
    f = forecast(BIG, with_server(BIG, work(), FP8), examples=5000, device=A100, ledger=[])
    lines = {(x.step, x.engine, x.bits): x for x in f.lines}
    assert lines["download", "vllm", 8].seconds == pytest.approx(65.52 * 20)
    assert lines["installing", "vllm", 8].seconds == 300
    assert lines["loading", "vllm", 8].seconds == 480  # two starts
    assert lines["loading", "local", 4].seconds == 180 and lines["training", "local", 4].units == 1000
    assert f.disk["weights"][0] == pytest.approx((65.52 + 19.66) * 1e9, rel=1e-3)
    assert f.disk["vLLM's environment"][0] == 12e9
    assert "vLLM FP8" in f.render() and "65.52" not in f.render()
    assert f.engine == "vllm" and f.bits == 8


def test_prefix_caching_shortens_reading_and_not_the_count_of_tokens():
    f = {w: forecast(BIG, {w: {"judge": 100}}, examples=100, device=A100, ledger=[]) for w in (FULL, NF4)}
    assert f[FULL].tokens == f[NF4].tokens
    read = (4600 - 3380) / 2400 + 120 / 500
    assert f[FULL].seconds == pytest.approx(100 * read)
    assert f[NF4].seconds == pytest.approx(100 * (4600 / 1500 + 120 / 300))


def test_a_guard_is_judged_by_the_local_engine_whoever_generates():
    f = [
        forecast(BIG, {w: {"guard": 100}}, examples=100, device=A100, ledger=[], guard=GUARD)
        for w in (FP8, Weights("local", 16))
    ]
    assert f[0].seconds == f[1].seconds and "its own model" in f[0].render()


def test_the_budget_takes_each_step_at_the_engine_that_does_it():
    f = forecast(BIG, with_server(BIG, work(), FP8), examples=5000, device=A100, ledger=[], hourly_rate=3600)
    each = f.dollars_a_unit
    assert each["training"] == 15 and each["loading"] == 240  # the dearest
    assert each["answer"] == pytest.approx(20 / 2400 + 250 / 1500)


# ---- side by side ----


def flags(**given):
    own = {"model": BIG.name, "bits": None, "limit": 5000, "principles": 1, "source": None, "pairs": None}
    own |= {"no_judge": False, "hourly_rate": None, "guard": "none", "set": [], "forecast": True}
    own |= {"run": "full", "fresh": False, "engine": "local", "engine_bits": None, "deterministic": False}
    return argparse.Namespace(**own | given)


def test_the_forecast_of_m3_has_three_engines_and_the_specification(monkeypatch):
    ahead, _ = generate_full.forecast(flags(engine="auto"), "mvp")
    said = ahead.render()
    rows = {x.name: x for x in ahead.beside}
    assert list(rows) == ["vLLM FP8", "vLLM 16 bits", "local NF4"]
    assert rows["vLLM FP8"].forecast.seconds == ahead.seconds and "vLLM FP8 (chosen)" in said
    assert 6 < rows["vLLM FP8"].forecast.seconds / 3600 < 8.5 and 11 < ahead.dollars < 15
    assert rows["vLLM FP8"].forecast.seconds < rows["vLLM 16 bits"].forecast.seconds
    assert rows["vLLM 16 bits"].forecast.seconds < rows["local NF4"].forecast.seconds
    for dollars in ("M0 $0.87", "M1 $1.74", "M2 $5.22", "a stage $10 to 14", "all $50 to 150"):
        assert dollars in said
    assert ahead.as_dict()["choice"]["engine"] == "vllm" and "beside" not in ahead.as_dict()
    kept, _ = generate_full.forecast(flags(engine="local"), "mvp")
    assert "local NF4 (chosen)" in kept.render()
    assert kept.seconds == rows["local NF4"].forecast.seconds


def test_16_bits_beside_a_guard_are_shown_without_it():
    ahead, _ = generate_full.forecast(flags(engine="auto", guard=GUARD.name), "mvp")
    full = {x.name: x for x in ahead.beside}["vLLM 16 bits"]
    assert "without the guard" in full.note and "guard" not in {x.step for x in full.forecast.lines}
    assert full.note in ahead.render()


def test_what_does_not_fit_at_all_is_said(monkeypatch):
    gpu = device.Gpu("NVIDIA A100-SXM4-40GB", "580.1", 40e9, 40e9, (8, 0))
    monkeypatch.setattr(device, "visible_gpus", lambda: [gpu])
    ahead, _ = generate_full.forecast(flags(engine="auto"), "mvp")
    assert {x.note for x in ahead.beside if not x.forecast} == {"does not fit into NVIDIA A100-SXM4-40GB"}
    assert weights_of(ahead.choice) == ("vllm", 4) and "does not fit into NVIDIA" in ahead.render()


@pytest.mark.parametrize("given", [{"model": "sandbox"}, {}])
def test_where_there_is_no_choice_nothing_stands_beside(monkeypatch, given):
    if not given:
        monkeypatch.setattr(device, "visible_gpus", lambda: [])
        given = {"model": "Qwen/Qwen2.5-0.5B"}  # which a CPU runs
    ahead, _ = generate_full.forecast(flags(engine="auto", **given), "mvp")
    assert "side by side" not in ahead.render()


def test_m2_prints_them_too_and_loads_nothing(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["generate_mvp.py", "--forecast", "--model", BIG.name])
    assert generate_mvp.main() == 0
    assert "side by side" in (said := capsys.readouterr().out) and "vLLM 16 bits" in said


def test_a_run_is_chosen_for_this_machine_and_a_forecast_for_the_one_it_is_for(monkeypatch):
    monkeypatch.setattr(device, "visible_gpus", lambda: [])
    assert milestone_forecast(flags(engine="auto"), 1000, 5000).choice.engine == "vllm"  # of an A100
    assert milestone_forecast(flags(engine="auto", forecast=False), 1000, 5000).choice.is_local


# ---- what is assumed ----


@pytest.mark.parametrize(
    ("name", "machine"),
    [
        (A100, "one A100 80GB"),
        ("NVIDIA A100 80GB PCIe", "one A100 80GB"),
        ("NVIDIA A100-PCIE-40GB", "one A100 40GB"),
        ("NVIDIA GeForce RTX 4090", "one RTX 4090 (24 GB)"),
        ("NVIDIA H100 80GB HBM3", "one A100 80GB"),
    ],
)
def test_machines_are_known_by_their_gpus_names(name, machine):
    assert machine_of(name).name == machine


def test_a_gpu_that_is_not_in_the_table_is_said_to_be_taken_for_another():
    f = forecast(BIG, work(), examples=1, device="NVIDIA H100 80GB HBM3", ledger=[])
    assert "on one A100 80GB, for want of figures for NVIDIA H100" in f.render()
    assert "for want of" not in forecast(BIG, work(), examples=1, device=A100, ledger=[]).render()


def test_a_mac_has_figures_of_its_own():
    assert "Metal" in machine_of("cpu", "darwin").about
    assert machine_of("cpu", "linux").name == "two free CPU cores"


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.name)
def test_every_machine_has_a_rate_for_every_step_in_every_precision_and_says_assumed(machine):
    where = machine.known_by[0] if machine.known_by else "cpu"
    for bits in (4, 8, 16):
        f = forecast(BIG, local(bits, dict.fromkeys(UNITS, 1)), examples=1, device=where, ledger=[])
        assert len(f.lines) == len(UNITS) and all(x.seconds > 0 for x in f.lines)
        assert all(x.source.startswith("assumed") for x in f.lines)


@pytest.mark.parametrize("machine", [m for m in MACHINES if m.known_by], ids=lambda m: m.name)
def test_no_assumed_speed_is_above_what_the_memory_lets_through(machine):
    """64 rows of 1,250 tokens at most, or as many as there is room for, of the 32B."""
    for (engine, bits), speed in machine.speeds.items():
        weights = BIG.parameters * {4: 0.6, 8: 1.0, 16: 2.0}[bits]
        row = 1250 * 0.262e-3
        rows = min(64, (80 - weights) / row)
        assert speed.generate < rows * machine.bandwidth / (weights + rows * row), (engine, bits)


def test_training_in_8_bits_has_a_rate_of_its_own():
    f = {b: forecast(BIG, local(b, {"training": 10}), examples=1, device=A100, ledger=[]) for b in (4, 8)}
    assert f[8].seconds == 250 > f[4].seconds == 150
    assert f[8].memory_gb[0] == pytest.approx(48.8, abs=0.5)
