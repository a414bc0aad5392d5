"""Flags: one place, each with its check and its sentence; values of the registry by --set."""

import os
import sys

import pytest
from cai.core import cli
from cai.core.cli import FLAGS, GENERATING, is_given, parser
from cai.core.errors import UserError
from cai.core.files import ROOT, directories
from cai.core.run import Run
from cai.models.registry import IDENTITY, REGISTRY, SETTABLE, row_settings, with_registry, with_values

SANDBOX = REGISTRY["sandbox"]
WRONG = {
    "bits": (["5", "0", "-4"], "choose 4, 8 or 16"),
    "threads": (["0", str((os.cpu_count() or 1) + 1)], FLAGS["threads"].says),
    "seed": (["-1", "4294967296"], "must be from 0 to 2**32 - 1"),
    "seeds": (["-1", "4294967296"], "different numbers from 0 on are needed, up to 2**32 - 1"),
    "held-out-pairs": (["0", "-1", "1000001"], "at least one pair is needed, and 1,000,000 are the most"),
    "pairs": (["0", "-1", "1000001"], "at least one pair is needed, and 1,000,000 are the most"),
    "engine": (
        ["vllm,local", "127.0.0.1:8000", "http://me:secret@host", "http://a/v1?key=b", "http://a,"],
        "local, vllm, auto, or http(s)://host[:port] without a user's name, with commas between several",
    ),
    "engine-bits": (["0", "5", "32"], "choose 4, 8 or 16"),
    "limit": (["0", "-1", "1000001"], "at least one example is needed, and 1,000,000 are the most"),
    "principles": (["0"], "must be at least 1"),
    "anchors": (["-0.1", "4.1", "nan", "inf"], "a share from 0 (none) to 4 (four for each revision pair)"),
    "held-out": (["0", "0.51", "-1", "nan"], "a share above 0, and at most 0.5"),
    "steps": (["0", "1000001"], "at least one step is needed, and 1,000,000 are the most"),
    "epochs": (["0", "inf", "nan", "1e300"], "must be above 0, and at most 1000"),
    "lr": (["0", "-1e-5", "inf", "nan", "1e400", "1.1"], "must be above 0, and at most 1"),
    "beta": (["0", "-0.1", "inf", "nan", "1e300"], "must be above 0, and at most 1000"),
    "lora-r": (["0", "1025"], "must be at least 1, and at most 1024"),
    "budget": (["0", "-1", "inf", "nan"], "give dollars above 0, or leave the flag out"),
    "hourly-rate": (["-1", "inf", "nan", "1e400"], "give dollars of at least 0"),
    "batch-sizes": (["0", "-1", "4097"], "numbers from 1 to 4096 are needed"),
}
RIGHT = {
    "engine": ["auto", "local", "vllm", "http://127.0.0.1:8000", "https://a.example,http://[::1]:80/"],
    "engine-bits": ["4", "8", "16"],
    "bits": ["4", "8", "16"],
    "threads": ["1"],
    "seed": ["0", "4294967295"],
    "limit": ["1"],
    "pairs": ["1"],
    "held-out-pairs": ["1"],
    "principles": ["1"],
    "anchors": ["0", "4"],
    "held-out": ["0.5", "1e-9"],
    "steps": ["1"],
    "epochs": ["0.5"],
    "lr": ["1e-9"],
    "beta": ["0.1"],
    "lora-r": ["1"],
    "budget": ["0.01"],
    "hourly-rate": ["0"],
    "seeds": ["0", "4294967295"],
    "batch-sizes": ["1"],
}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_each_flags_check_and_sentence(name, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))  # --threads sets one
    values, says = WRONG[name]
    for value in values:
        with pytest.raises(UserError) as error:
            parser("", name).parse_args([f"--{name}={value}"])
        typed = FLAGS[name].about.get("type", str)(value)
        assert str(error.value) == f"--{name} {typed}: {says}"
    for value in RIGHT[name]:
        parser("", name).parse_args([f"--{name}", value])
    parser("", name).parse_args([])


def test_every_flag_with_a_check_is_tested_above():
    assert {name for name, flag in FLAGS.items() if flag.says} == set(WRONG) == set(RIGHT)


@pytest.mark.parametrize(("argv", "says"), [
    (["--seeds", "0", "1", "0"], "--seeds 0 1 0: different numbers from 0 on"),
    (["--batch-sizes", "1", "0"], "--batch-sizes 1 0: numbers from 1"),
])  # fmt: skip
def test_every_value_of_a_flag_with_several_is_checked(argv, says):
    with pytest.raises(UserError, match=says):
        parser("", argv[0][2:]).parse_args(argv)


@pytest.mark.parametrize("name", ["run", "model", "source", "constitution", "after", "guard"])
def test_an_empty_text_is_no_value(name):
    for empty in ("", " ", "\n\t"):
        with pytest.raises(UserError, match=f"^--{name} is empty: give a value, or leave the flag out$"):
            parser("", name).parse_args([f"--{name}", empty])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a" * 260, "a name has at most 100 letters"),
        ("plan/" + "a" * 101, "a name has at most 100 letters"),
        ("a b", "use letters, digits"),
        ("a\nb", "use letters, digits"),
        ("a\x1b[2J", "use letters, digits"),
        ("../a", "use letters, digits"),
        ("a.part", "files in the making"),
        ("prompts", "holds committed inputs"),
    ],
)
def test_a_name_of_a_run_is_checked_with_the_flags_also_where_another_run_is_meant(name, says):
    for flag in ("run", "after"):
        with pytest.raises(UserError, match=f"^--{flag} .*{says}"):
            parser("", flag).parse_args([f"--{flag}", name])
    parser("", "run").parse_args(["--run", "plan/" + "a" * 100])


def test_what_argparse_does_not_understand_is_one_line(capsys):
    for argv in (["--limit"], ["--limit", "x"], ["--nosuch"], ["--limit=3", "\x1b[2J"]):
        with pytest.raises(SystemExit, match="2"):
            parser("", "limit").parse_args(argv)
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and said.startswith("error: ") and "\x1b" not in said


def test_a_wrong_default_is_found_too_and_a_flag_may_have_choices():
    with pytest.raises(UserError, match="--limit 0"):
        parser("", "limit", limit=0).parse_args([])
    loss = parser("", "loss", choices={"loss": ["dpo", "orpo"]})
    assert loss.parse_args(["--loss", "orpo"]).loss == "orpo"
    with pytest.raises(SystemExit):
        loss.parse_args(["--loss", "dop"])


@pytest.mark.parametrize(
    ("value", "says"),
    [("9" * 400, "is too large"), ("9" * 5000, "no whole number"), ("1e3", "no whole number")],
)
def test_a_whole_number_is_one_that_can_be_reckoned_with(value, says, capsys):
    for name in ("limit", "steps", "principles"):
        with pytest.raises(SystemExit, match="2"):
            parser("", name).parse_args([f"--{name}", value])
        said = capsys.readouterr().err
        assert says in said and len(said) < 500


def test_an_argument_that_is_no_text_is_a_sentence(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x.py", "--run", "caf\udce9"])
    with pytest.raises(UserError, match="encoding: give texts in UTF-8"):
        parser("", "run").parse_args()


def test_no_flag_is_guessed_from_its_beginning(capsys):
    with pytest.raises(SystemExit) as stop:
        parser("", "limit").parse_args(["--lim", "3"])
    assert stop.value.code == cli.BAD_INPUT and "--lim" in capsys.readouterr().err


def test_every_flags_help_can_be_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        parser("What it is for.", *FLAGS).parse_args(["--help"])
    said = capsys.readouterr().out
    assert stop.value.code == cli.GO and all(f"--{name}" in said for name in FLAGS)
    assert set(GENERATING) <= set(FLAGS)


@pytest.mark.parametrize(
    ("argv", "given"),
    [
        (["--held-out", "0.2"], True),
        (["--held-out=0.2"], True),
        (["--held-outs=0.2"], False),
        (["--run", "held-out"], False),
        ([], False),
    ],
)
def test_is_given_tells_a_flag_from_its_default(monkeypatch, argv, given):
    monkeypatch.setattr(sys, "argv", ["script.py", *argv])
    assert is_given("held_out") is is_given("held-out") is given


# ---- --set ----


def test_values_of_several_set_flags_all_count():
    flags = ["--set", "shots=1", "beta=0.2", "--set", "answer_temperature=0"]
    args = parser("", "set").parse_args(flags)
    assert args.set == ["shots=1", "beta=0.2", "answer_temperature=0"]
    assert parser("", "set").parse_args([]).set == []
    spec = with_values(SANDBOX, args.set)
    assert (spec.shots, spec.beta, spec.answer_temperature) == (1, 0.2, 0.0)
    assert with_values(SANDBOX, []) is not None and with_values(SANDBOX, []) == SANDBOX


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("shot=1", "write name=value, with one of these names: .*shots"),
        ("shots", "write name=value"),
        ("=1", "write name=value"),
        ("bits=4", "write name=value"),
        ("name=other", "write name=value"),
        ("sandbox=true", "write name=value"),
        ("shots=one", "must be a whole number"),
        ("shots=1.5", "must be a whole number"),
        ("beta=big", "must be a number"),
        ("requests=maybe", "must be true or false"),
        ("shots=-1", "must be at least 0"),
        ("shots=99", "there are [0-9]+ exemplars"),
        ("answer_temperature=-0.1", "must be at least 0"),
        ("answer_temperature=nan", "must be at least 0"),
        ("warmup=-1", "must be at least 0"),
        ("judge_rule=loudest", "choose one of 'both orders', 'log-odds'"),
        ("warmup=1.1", "a share, at most 1"),
        ("near_duplicate=1.5", "a share, at most 1"),
        ("answer_tokens=0", "must be above 0"),
        ("learning_rate=inf", "must be above 0"),
        ("learning_rate=0", "must be above 0"),
        ("lora_r=-8", "must be above 0"),
        (f"lora_r={10**400}", "is too large"),
        (f"beta={10**400}", "must be above 0"),
        ("lora_r=1025", "is too large, 1024 is the most"),
        ("learning_rate=1.5", "is too large, 1 is the most"),
        ("answer_tokens=1000001", "is too large"),
        ("max_seq_length=64", "leaves no room for its prompt in a context of 64"),
        ("answer_tokens=5000", "a text of 5000 tokens leaves no room"),
    ],
)
def test_what_cannot_be_set_is_a_sentence(text, says):
    with pytest.raises(UserError, match=f"--set.*{says}"):
        with_values(SANDBOX, [text])


def test_a_value_is_set_once():
    with pytest.raises(UserError, match="beta is set twice"):
        with_values(SANDBOX, ["beta=0.1", "shots=0", "beta=0.2"])


@pytest.mark.parametrize("name", SETTABLE)
def test_every_value_of_the_registry_but_a_models_identity_can_be_set_to_what_it_is(name):
    for spec in REGISTRY.values():
        assert with_values(spec, [f"{name}={getattr(spec, name)}"]) == spec
    assert name not in IDENTITY


def test_an_equals_sign_in_a_value_is_part_of_it(tmp_path):
    seeds = tmp_path / "a=b.jsonl"
    with pytest.raises(UserError, match="there is no such file"):
        with_values(SANDBOX, [f"seeds={seeds}"])
    seeds.write_text("")
    assert with_values(SANDBOX, [f"seeds={seeds}"]).seeds == str(seeds)


def test_the_settings_of_a_run_are_what_was_given_and_the_registrys():
    spec = with_values(SANDBOX, ["beta=0.2"])
    found = with_registry({"model": "sandbox", "source": None, "loss": None, "seed": 0}, spec)
    assert found == row_settings(spec) | {"model": "sandbox", "source": None, "seed": 0}
    assert found["loss"] == SANDBOX.loss and found["beta"] == 0.2
    assert with_registry({"loss": "orpo"}, spec)["loss"] == "orpo"


def test_sizes_and_bits_of_the_registry_are_numbers():
    for name, spec in REGISTRY.items():
        assert spec.parameters > 0 and spec.sandbox is (name == "sandbox"), name
        assert spec.kind == ("instruct" if "Instruct" in name or "Guard" in name else "base")


def test_a_session_records_a_set_value_and_where_it_comes_from(tmp_path, monkeypatch):
    from cai.models import session

    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    monkeypatch.setattr(session, "load_engine", lambda spec, *how, **more: (None, _Engine(spec)))
    argv = ["--model", "sandbox", "--loss", "orpo", "--set", "beta=0.2", "shots=0"]
    monkeypatch.setattr(sys, "argv", ["script.py", *argv])

    def opened(argv):
        args = parser("", *GENERATING, "loss", run="a").parse_args(argv)
        with session.open_session(args, "loss") as found:
            (found.run.data / "records.jsonl").write_text("")
            return found.run.manifest

    manifest = opened(argv)
    settings, sources = manifest["settings"], manifest["sources"]
    assert (settings["beta"], settings["loss"], settings["lora_r"]) == (0.2, "orpo", SANDBOX.lora_r)
    assert (sources["beta"], sources["shots"], sources["lora_r"]) == ("--set", "--set", "registry")
    assert (sources["loss"], sources["model"], sources["seed"]) == ("flag", "flag", "default")
    assert sources["prompts"] == "code" and set(sources) >= set(settings)
    faster = opened([*argv, "max_batch=3"])  # changes no row, so the run goes on
    assert (faster["max_batch"], faster["sources"]["max_batch"], faster["settings"]) == (3, "--set", settings)
    assert opened(argv)["settings"] == settings and settings["heldout"] == SANDBOX.heldout
    with Run.reopen("a") as run:
        run.record(adapter="hash of the trained one")
    assert opened(argv)["adapter"] == "hash of the trained one"  # until another is trained
    for other in (argv[:4], [*argv, "--set", "beta=0.3"], ["--loss", "dpo", *argv[:2], *argv[4:]]):
        with pytest.raises(UserError, match="(beta|loss) was|is set twice"):
            opened(other)


@pytest.mark.parametrize(("own", "flags"), [
    ("principles", {"principles": 99}), ("principle", {"principle": "kindliness"}),
])  # fmt: skip
def test_a_session_finds_bad_principles_before_anything_is_loaded_or_written(
    own, flags, tmp_path, monkeypatch
):
    from cai.models import session

    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    monkeypatch.setattr(session, "load_engine", lambda *a, **more: pytest.fail("a model was loaded"))
    args = parser("", *GENERATING, run="a", **flags).parse_args(["--model", "sandbox"])
    with pytest.raises(UserError, match="cannot pick 99|no principle 'kindliness'"):
        session.open_session(args, own)
    assert not list(tmp_path.iterdir())


class _Engine:
    revision, chat = "r", None

    def __init__(self, spec):
        self.spec = spec

    def release(self):
        pass


def test_a_data_files_text_in_an_error_cannot_command_the_terminal(capsys):
    def main():
        raise UserError("prompts.csv: \x1b[2J is no task")

    with pytest.raises(SystemExit, match="2"):
        cli.cli(main)
    assert capsys.readouterr().err == "error: prompts.csv: \\x1b[2J is no task\n"


def test_a_name_with_a_line_break_leaves_an_error_on_one_line(capsys):
    def main():
        raise UserError("--source a\nb\u202e.csv: there is no such file")

    with pytest.raises(SystemExit, match="2"):
        cli.cli(main)
    assert capsys.readouterr().err == "error: --source a\\nb\\u202e.csv: there is no such file\n"


# ---- CAI_OUTPUT ----


@pytest.mark.parametrize(
    ("value", "found", "said"),
    [
        ("", str(ROOT), "CAI_OUTPUT is empty, so it counts as not set: outputs go to "),
        (" ", str(ROOT), "CAI_OUTPUT is empty, so it counts as not set: outputs go to "),
        ("~/runs", "/home/x/runs", "CAI_OUTPUT=~/runs is /home/x/runs"),
        ("out/b", "{here}/out/b", "CAI_OUTPUT=out/b is {here}/out/b"),
        ("{here}/c/", "{here}/c", None),
    ],
)
def test_where_outputs_go_is_said(value, found, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/x")
    monkeypatch.setenv("CAI_OUTPUT", value.format(here=tmp_path))
    parser("", "run").parse_args([])
    assert str(directories("a")[0]) == found.format(here=tmp_path) + "/data/a"
    err = capsys.readouterr().err
    assert err.startswith(f"note: {said.format(here=tmp_path)}") if said else not err


def test_a_directory_that_is_none_or_is_not_ours_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")

    def asks(value, *flags):
        monkeypatch.setenv("CAI_OUTPUT", value)
        with pytest.raises(UserError) as error:
            parser("", "model", "forecast").parse_args([])
        return str(error.value)

    assert f"{tmp_path}/file is no directory; give CAI_OUTPUT" in asks(f"{tmp_path}/file/x/y")
    assert asks("~nobody-here/x") == "CAI_OUTPUT=~nobody-here/x: there is no such user; give the whole path"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert f"{tmp_path} cannot be written to; set CAI_OUTPUT" in asks(f"{tmp_path}/new")
    parser("", "model", "forecast").parse_args(["--forecast"])  # writes nothing
