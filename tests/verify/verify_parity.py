"""`make verify-parity`: our models against transformers', to out/verify/parity.json. Exit code 1 when a bound is broken.

{"models": {NAME: {"logits", "loss", "gradients": largest absolute difference, "gradients_relative": to the largest
                   gradient of the parameter, "cases": what was compared, "export_loads", "import_round_trip"}},
 "export_loads", "import_round_trip": of all models, "bounds", "holds", "torch", "transformers"}
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hugging_face"))

import hf_parity as parity
import transformers
from safetensors.torch import save_file

from trainer.__main__ import main as trainer_main
from trainer.hugging_face.folder import FolderSettings, write_folder
from trainer.hugging_face.names import olmo_core_names
from trainer.hugging_face.weights import StoredWeights
from trainer.model.transformer import HybridModel


def verify(name: str, folder: Path) -> dict[str, Any]:
    """All comparisons of one model; `folder` is for files."""
    ours, theirs = parity.pair(parity.spec_of(name))
    found = parity.Differences()
    parity.compare_lengths(ours, theirs, parity.LENGTHS, found)
    parity.compare_packed(ours, theirs, parity.PACKED, found)
    export = folder / "export"
    state = ours.state_dict()
    dtypes = dict.fromkeys(state, torch.float32)
    settings = FolderSettings(dtypes, parity.TEXT, shard_bytes=1_000_000)
    write_folder(export, ours.spec, lambda names: {name: state[name] for name in names}, settings)
    return {
        **asdict(found),
        "broken": found.broken(),
        "export_loads": export_loads(export, theirs),
        "import_round_trip": import_round_trip(export, ours, theirs, name, folder),
    }


def export_loads(export: Path, theirs: torch.nn.Module) -> bool:
    """transformers finds every weight, computes the same bits with them, and generates."""
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        export, output_loading_info=True, dtype=torch.float32
    )
    tokens = torch.arange(65)[None]
    with torch.no_grad():
        equal = torch.equal(loaded(tokens).logits, theirs(tokens).logits)
        generated = loaded.generate(tokens, max_new_tokens=4, do_sample=False)
    unloaded = info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]
    return equal and not unloaded and tokens.shape[1] < generated.shape[1] <= tokens.shape[1] + 4


def import_round_trip(export: Path, ours: HybridModel, theirs: torch.nn.Module, name: str, folder: Path) -> bool:
    """Every bit comes back: of our export, of what save_pretrained writes, and under OLMo-core's names."""
    state = ours.state_dict()
    theirs.save_pretrained(folder / "saved")
    save_file({core: state[own] for own, core in olmo_core_names(ours.spec).items()}, folder / "core.safetensors")
    config = folder / "trainer.yaml"
    preset, overrides = parity.MODELS[name]
    model = {"name": preset, "overrides": overrides}
    data = {"paths": ["none"], "sequence_length": 512}
    config.write_text(json.dumps({"run_dir": "none", "steps": 1, "batch_tokens": 512, "model": model, "data": data}))
    for index, source in enumerate((export, folder / "saved", folder / "core.safetensors")):
        out = folder / f"import-{index}"
        arguments = ["import", str(source), str(out), "--config", str(config), "--max-positions", "512"]
        if trainer_main(arguments) != 0:
            return False
        weights = StoredWeights.open(out, ours.spec)
        if not all(torch.equal(weights.read(each), tensor) for each, tensor in state.items()):
            return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/verify/parity.json"))
    out = parser.parse_args().out
    torch.set_num_threads(1)
    models = {}
    for name in parity.MODELS:
        with tempfile.TemporaryDirectory() as folder:
            models[name] = verify(name, Path(folder))
        shown = {key: value for key, value in models[name].items() if key != "cases"}
        print(f"{name}: {json.dumps(shown)}", flush=True)
    loads = all(model["export_loads"] for model in models.values())
    returns = all(model["import_round_trip"] for model in models.values())
    holds = loads and returns and not any(model["broken"] for model in models.values())
    report = {
        "models": models,
        "export_loads": loads,
        "import_round_trip": returns,
        "bounds": parity.BOUNDS,
        "holds": holds,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{out}: {'every bound holds' if holds else 'a bound is BROKEN'}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
