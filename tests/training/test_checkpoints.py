"""Only whole checkpoints count."""

from cai.training import checkpoints


def test_half_a_checkpoint_does_not_count(tmp_path):
    for step in (0, 2, 4, 6):
        place = checkpoints.place(tmp_path, step)
        place.mkdir(parents=True)
        (place / "adapter_model.safetensors").write_bytes(b"weights")
        if step != 4:  # killed before it was declared whole
            checkpoints.complete(place)
    damaged = checkpoints.place(tmp_path, 6) / "adapter_model.safetensors"
    damaged.write_bytes(b"weigh")  # a crash of the machine itself
    assert checkpoints.steps(tmp_path) == [0, 2]
    checkpoints.prune(tmp_path, [2])
    assert [p.name for p in (tmp_path / "steps").iterdir()] == ["checkpoint-2"]


def test_what_is_no_checkpoint_does_not_count(tmp_path):
    for name, text in {
        "2": "[]",
        "4": '{"files": []}',
        "6": '{"files": {"x": 1}}',
        "x": '{"files": {}}',
    }.items():
        place = tmp_path / "steps" / f"checkpoint-{name}"
        place.mkdir(parents=True)
        (place / "complete.json").write_text(text)
    assert checkpoints.steps(tmp_path) == []
