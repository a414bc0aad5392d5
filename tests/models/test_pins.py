"""The first download of a repository pins it: its commit, and the hashes of its weights."""

import hashlib
import json
import multiprocessing
import threading

import pytest
from cai.core import files
from cai.core.errors import UserError
from cai.models import device, loader, pins, registry

REPO = "some/model"
FIRST, OTHER = "1" * 40, "2" * 40


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """A checkout without pins, an empty cache, and a hub whose main branch is at hub["commit"]."""
    checkout, asked = tmp_path / "checkout", {"commit": FIRST, "weights": b"weights", "revisions": []}
    (checkout / "models").mkdir(parents=True)
    monkeypatch.setattr(pins, "ROOT", checkout)
    monkeypatch.setattr(pins, "COMMITTED", checkout / "models/pins.json")
    monkeypatch.setattr(pins, "output_root", lambda: checkout)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))

    def download(repo, revision=None, **_):
        asked["revisions"].append(revision)
        commit = revision or asked["commit"]
        place = tmp_path / "hub/hub" / f"models--{repo.replace('/', '--')}" / "snapshots" / commit
        if not place.exists():
            place.mkdir(parents=True)
            (place / "config.json").write_text("{}")
            (place / "model.safetensors").write_bytes(asked["weights"])
            (place / "model.safetensors.index.json").write_text("{}")
        return str(place)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return asked


def fetch(name=REPO):
    return loader.fetch(registry.resolve(name), 16)[1]


def pin_file(tmp_path):
    return tmp_path / "checkout/models/pins.json"


def test_the_first_download_is_pinned_and_the_next_takes_that_commit(hub, tmp_path, capsys):
    assert registry.resolve(REPO).source(16) == (REPO, None)
    assert fetch() == FIRST
    assert f"{REPO} is pinned to {FIRST} from now on" in capsys.readouterr().out
    entry = json.loads(pin_file(tmp_path).read_text())[REPO]
    sha256 = {name: facts["sha256"] for name, facts in entry["files"].items()}
    assert sha256["model.safetensors"] == hashlib.sha256(b"weights").hexdigest()
    assert entry["files"]["model.safetensors"]["bytes"] == 7 and "model.safetensors.index.json" in sha256
    before = pin_file(tmp_path).read_bytes()
    hub["commit"] = OTHER
    assert fetch() == FIRST and hub["revisions"] == [None, FIRST]
    assert pin_file(tmp_path).read_bytes() == before and capsys.readouterr().out == ""


def test_a_commit_that_is_named_is_taken_and_pins_nothing(hub, tmp_path):
    named = registry.REGISTRY["Qwen/Qwen2.5-0.5B"]
    assert fetch(named.name) == named.revision and fetch(f"{REPO}@{OTHER}") == OTHER
    assert not pin_file(tmp_path).exists()
    fetch()
    assert fetch(f"{REPO}@{OTHER}") == OTHER and pins.pinned_commit(REPO) == FIRST


def test_other_weights_under_the_pinned_commit_are_refused(hub, tmp_path):
    fetch()
    snapshot = device.cache_dir() / "models--some--model/snapshots" / FIRST
    for damaged in (b"weighty", b"short"):
        for old in snapshot.iterdir():
            old.unlink()
        snapshot.rmdir()
        hub["weights"] = damaged
        with pytest.raises(UserError, match="model.safetensors is not the file that is pinned"):
            fetch()
    with pytest.raises(UserError, match="is not the file"):  # sizes are asked each time
        fetch()


def test_of_two_processes_the_quicker_one_pins(hub, tmp_path):
    snapshots = []
    for commit in (FIRST, OTHER):
        hub["commit"] = commit
        snapshots.append(loader.fetch(registry.ModelSpec("x", f"some/{commit[0]}"), 16)[0])
    barrier, said = threading.Barrier(2), []

    def settle(snapshot):
        barrier.wait()
        try:
            said.append(pins.settle(REPO, snapshot, fresh=True))
        except UserError as error:
            said.append(str(error))

    threads = [threading.Thread(target=settle, args=(snapshot,)) for snapshot in snapshots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted("from now on" in text for text in said) == [False, True]
    assert any("another process has pinned it" in text for text in said)
    assert len(json.loads(pin_file(tmp_path).read_text())) == 3


def pin_one(number, committed, snapshot):
    pins.COMMITTED, pins.ROOT = committed, committed.parent.parent
    pins.output_root = lambda: pins.ROOT
    pins.settle(f"some/repo{number}", snapshot, fresh=False)


def test_processes_that_pin_at_once_lose_no_entry(hub, tmp_path):
    snapshot = loader.fetch(registry.resolve(f"{REPO}@{FIRST}"), 16)[0]
    several = [
        multiprocessing.get_context("fork").Process(target=pin_one, args=(n, pin_file(tmp_path), snapshot))
        for n in range(8)
    ]
    for process in several:
        process.start()
    for process in several:
        process.join()
    assert sorted(json.loads(pin_file(tmp_path).read_text())) == [f"some/repo{n}" for n in range(8)]
    assert [path.name for path in pin_file(tmp_path).parent.iterdir()] == ["pins.json"]


def test_a_run_with_outputs_elsewhere_writes_nothing_into_the_checkout(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pins, "output_root", lambda: tmp_path / "out")
    fetch()
    assert not pin_file(tmp_path).exists() and "copy its entry into models/pins.json" in " ".join(
        capsys.readouterr().out.replace(str(tmp_path / "checkout") + "/", "").split()
    )
    hub["commit"] = OTHER
    assert fetch() == FIRST
    pin_file(tmp_path).write_text(json.dumps({REPO: {"commit": OTHER, "files": {}}}))
    assert fetch() == OTHER  # what is committed counts first


def test_a_checkout_that_cannot_be_written_to_is_said_and_stops_nothing(hub, monkeypatch, capsys):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pins, "write_json", refuse)
    assert fetch() == FIRST
    said = capsys.readouterr().out
    assert f"taken at {FIRST}, but not pinned" in said and "Permission denied" in said


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"a/b": {"commit": "main", "files": {}}}', '{"a/b": 1}', '{"a/b": {"commit": "x"}}']
)
def test_a_damaged_file_is_a_sentence(hub, tmp_path, text):
    pin_file(tmp_path).write_text(text)
    with pytest.raises(UserError, match="pins.json is damaged: restore it"):
        registry.resolve(REPO).source(16)


def test_the_file_that_is_shipped_can_be_read():
    shipped = files.from_json((files.ROOT / "models/pins.json").read_bytes())
    assert all(pins._is_entry(entry) for entry in shipped.values())
