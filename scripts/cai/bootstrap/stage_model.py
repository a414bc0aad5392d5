"""The model that a plan's stages share: loaded once, with the adapters of earlier stages by their hashes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cai.core.errors import UserError
from cai.core.files import display_path
from cai.core.run import Run
from cai.models.engine import Engine
from cai.models.engines import EngineChoice, engine_of, server_engine
from cai.models.loader import load
from cai.models.model import Model, free_memory
from cai.models.registry import ModelSpec
from cai.models.session import record_engine, start


@dataclass
class SharedModel:
    """The model that is loaded. A training needs it bare, so it is loaded anew for one; everything else uses
    the adapters that it carries by then, or those of a server, which gives the GPU back for a training."""

    spec: ModelSpec
    plan: Run  # the plan's own: all its stages must find the same weights
    choice: EngineChoice = EngineChoice()
    model: Model | None = None
    server: Engine | None = None

    def bare(self, bits: int, run: Run) -> Model:
        self.release()
        if self.model is None or self.model.adapters or self.model.bits != bits:
            self._load(bits, run)
        return self.model

    def carrying(self, bits: int, adapters: Mapping[str, Path], run: Run) -> dict[str, str]:
        """adapters: hash -> directory. hash -> the name under which they can be asked for now. It follows
        from the hash, even where a training has left one as "default": records hold it. bits: of the weights
        in this process; a server has its own."""
        if not self.choice.is_local:
            self._serve(run)
        elif self.model is None or self.model.bits != bits:
            self._load(bits, run)
        carrier = self.server or self.model
        names = {digest: f"stage-{digest[:12]}" for digest in adapters}
        for digest, path in adapters.items():
            if names[digest] not in carrier.adapters:
                carrier.load_adapter(path, names[digest])
                if carrier.adapters[names[digest]] != digest:
                    raise UserError(
                        f"{display_path(path)} is not the adapter {digest[:12]} that the stage has recorded: "
                        "put that one back, or move the stage's data and checkpoints aside to make it anew"
                    )
        return names

    def engine(self, spec: ModelSpec) -> Engine:
        """What carrying() has made ready, for a stage's own entry of the registry."""
        if self.server is None:
            return engine_of(replace(self.model, spec=spec))
        engine = copy.copy(self.server)
        engine.spec = spec
        return engine

    def release(self) -> None:
        if self.server is not None:
            self.server.release()
            self.server = None

    def _serve(self, run: Run) -> None:
        if self.server is None:
            self.model = None
            free_memory()
            self.server = server_engine(self.spec, self.choice, run.log)
            self.plan.pin(**{f"revision_in_{self.choice.bits}_bits": self.server.revision})
            start(self.server, run, quiet=True)

    def _load(self, bits: int, run: Run) -> None:
        self.model = None
        free_memory()
        with run.step("loading", quiet=True):
            self.model = load(self.spec, bits)
            self.plan.pin(**{f"revision_in_{bits}_bits": self.model.revision})
            record_engine(run, engine_of(self.model))  # the ledger's row of this step names it
