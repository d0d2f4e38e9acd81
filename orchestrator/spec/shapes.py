"""Checks across keys: the gang's shape, the batch, and what is legal but probably not meant."""

from __future__ import annotations

from orchestrator.spec.document import Document
from orchestrator.spec.errors import SpecError
from orchestrator.spec.model import RunSpec


def shape_errors(document: Document, spec: RunSpec) -> list[SpecError]:
    return [*_mesh(document, spec), *_workload(document, spec), *_batch(document, spec)]


def notes(spec: RunSpec) -> list[str]:
    """Sentences about a valid spec that its author may want to know."""
    out = []
    if spec.replicas == 1:
        out.append("One replica: no rank holds a copy of a lost shard, so every lost node goes back to a checkpoint.")
    if not spec.speaks_protocol:
        out.append("The command doesn't speak the worker protocol: every recovery starts all of its processes again.")
    if spec.max_recoveries == 0:
        out.append("max_recoveries is 0: the first fault ends the run.")
    return out


def _mesh(document: Document, spec: RunSpec) -> list[SpecError]:
    if spec.replicas * spec.shards == spec.world_size:
        return []
    message = (
        f"the mesh has {spec.replicas} replicas x {spec.shards} shards = {spec.replicas * spec.shards} ranks, "
        f"but {spec.nodes} nodes x {spec.ranks_per_node} ranks_per_node = {spec.world_size}"
    )
    if spec.world_size % spec.shards == 0:
        hint = f"replicas: {spec.world_size // spec.shards} keeps these shards"
    elif spec.world_size % spec.replicas == 0:
        hint = f"shards: {spec.world_size // spec.replicas} keeps these replicas"
    else:
        hint = f"{{replicas: {spec.nodes}, shards: {spec.ranks_per_node}}} is one replica a node"
    return [document.at_key(("mesh",), message, hint)]


def _workload(document: Document, spec: RunSpec) -> list[SpecError]:
    work = spec.work
    if (work.trainer is None) == (work.command is None):
        what = "both 'trainer' and 'command'" if work.command is not None else "neither 'trainer' nor 'command'"
        return [document.at_key(("workload",), f"'workload' has {what}", "give exactly one of them")]
    if work.trainer is None:
        return []
    errors = []
    if "run_dir" in work.trainer:
        run_dir = ("workload", "trainer", "run_dir")
        errors.append(document.at_key(run_dir, "'run_dir' is chosen by the daemon", "remove this line"))
    if "speaks_protocol" in work.model_fields_set and not work.speaks_protocol:
        speaks = ("workload", "speaks_protocol")
        errors.append(document.at_key(speaks, "the built-in trainer always speaks the protocol", "remove this line"))
    return errors


def _batch(document: Document, spec: RunSpec) -> list[SpecError]:
    """batch_tokens = world size x sequences a rank x sequence_length, all whole."""
    trainer = spec.work.trainer or {}
    data = trainer.get("data")
    length = data.get("sequence_length") if isinstance(data, dict) else None
    tokens = trainer.get("batch_tokens")
    if type(length) is not int or type(tokens) is not int or min(length, tokens) < 1:
        return []  # the trainer's own check speaks of wrong types
    unit = length * spec.world_size
    if tokens % unit == 0:
        return []
    message = (
        f"batch_tokens {tokens} can't be shared out: {spec.world_size} ranks x sequence_length {length} = {unit} "
        f"tokens don't divide it"
    )
    below, above = tokens // unit * unit, (tokens // unit + 1) * unit
    hint = f"the nearest batches that do: {below} and {above}" if below else f"the smallest that does: {above}"
    return [document.at_value(("workload", "trainer", "batch_tokens"), message, hint)]
