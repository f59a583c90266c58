"""A run of the controlled world as a folder like a bundle's: each role a model of its own, as GGUF in float32, and the
manifest that says what made them.

Engines open the files; what a device takes as a bundle is adapters on a base that it knows (``bundle``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from popi_edge.models.manifest import MANIFEST, ROLES
from popi_edge.prompts import CONTRACT
from popi_export import bundle
from popi_training import micro, popi_micro, world_eval


def export(run: Path, out: Path, *, name: str, version: str) -> dict[str, Any]:
    """Write the folder ``out``, in place of an earlier one, and return its manifest. Raises ConfigError (``out`` is
    something else, or the run none of the world), ModelError for a damaged checkpoint, StoreError when the disk is
    full; ``out`` is as it was then."""
    trainer = world_eval.open_trained(run)
    bundle.refuse_taken(out, force=True)
    commit, seconds = bundle.history(run, trainer.step)
    with bundle.drafted(out) as draft:
        for role in ROLES:
            with trainer.roles.playing(role) as model:
                micro.write(draft / f"{role}.gguf", model, popi_micro.words())
        manifest = {
            "kind": "two whole models of the controlled world",
            "name": name,
            "version": version,
            "prompt_contract": CONTRACT,
            "roles": {role: bundle.entry(draft / f"{role}.gguf") for role in ROLES},
            "training": bundle.made_by(trainer.recipe, trainer.step, trainer.made_from, commit, seconds),
            "licences": {"corpus": "CC0-1.0", "model": "Apache-2.0"},
        }
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    return manifest
