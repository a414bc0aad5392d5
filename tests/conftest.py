"""One sandbox model for all tests that need a real one; each gets it without adapters."""

from __future__ import annotations

import pytest
from cai.core.files import ROOT


@pytest.fixture(scope="session", autouse=True)
def no_output_in_the_checkout(tmp_path_factory):
    """Of a test that sets no CAI_OUTPUT of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAI_OUTPUT", str(tmp_path_factory.mktemp("output")))
        yield


@pytest.fixture(scope="session")
def base():
    """The shipped sandbox, loaded once through Unsloth. Tests must not add adapters to it: see `fresh`."""
    from cai.models.loader import load
    from cai.models.registry import REGISTRY

    return load(REGISTRY["sandbox"])


@pytest.fixture
def fresh():
    """A sandbox of one's own, to train or to give adapters."""
    from cai.models.loader import load
    from cai.models.registry import REGISTRY

    return load(REGISTRY["sandbox"])


@pytest.fixture(scope="session")
def sandbox_instructions():
    from cai.core.prompt_files import load_seeds

    return [s.instruction for s in load_seeds(ROOT / "data/prompts/seeds_sandbox.jsonl")]
