"""The model that a plan's stages share: loaded once, with the adapters of earlier stages by their hashes."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cai.core.errors import UserError
from cai.core.files import display_path
from cai.core.run import Run
from cai.models.loader import load
from cai.models.model import Model
from cai.models.registry import ModelSpec


@dataclass
class SharedModel:
    """The model that is loaded. A training needs it bare, so it is loaded anew for one; everything else uses
    the adapters that it carries by then."""

    spec: ModelSpec
    plan: Run  # the plan's own: all its stages must find the same weights
    model: Model | None = None

    def bare(self, bits: int, run: Run) -> Model:
        if self.model is None or self.model.adapters or self.model.bits != bits:
            self._load(bits, run)
        return self.model

    def carrying(self, bits: int, adapters: Mapping[str, Path], run: Run) -> dict[str, str]:
        """adapters: hash -> directory. hash -> the name under which the model carries it now. It follows from
        the hash, even where a training has left it as "default": records hold it."""
        if self.model is None or self.model.bits != bits:
            self._load(bits, run)
        names = {digest: f"stage-{digest[:12]}" for digest in adapters}
        for digest, path in adapters.items():
            if names[digest] not in self.model.adapters:
                self.model.load_adapter(path, names[digest])
                if self.model.adapters[names[digest]] != digest:
                    raise UserError(
                        f"{display_path(path)} is not the adapter {digest[:12]} that the stage has recorded: "
                        "put that one back, or move the stage's data and checkpoints aside to make it anew"
                    )
        return names

    def _load(self, bits: int, run: Run) -> None:
        import torch

        self.model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        with run.step("loading", quiet=True):
            self.model = load(self.spec, bits)
            self.plan.pin(**{f"revision_in_{bits}_bits": self.model.revision})
            run.record(bits=bits, device=self.model.device_name)  # the ledger's row of this step names them
