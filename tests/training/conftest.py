"""One finished training for all tests that look at one."""

import pytest
from quick import HELD, QUICK, TRAIN, new


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A finished training: (result, directory, what it said, the rows that TRL trained on)."""
    from cai.training import dpo

    output, said, seen = tmp_path_factory.mktemp("whole") / "run", [], []
    build = dpo.build

    def spy(*args):
        trainer = build(*args)
        seen.extend(trainer.train_dataset)
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpo, "build", spy)
        result = dpo.train(new(), TRAIN, HELD, QUICK, output, resume=True, log=said.append)
    return result, output, said, seen
