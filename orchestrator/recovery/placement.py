"""Which node takes which node index of a gang. Pure; survivors keep their index, so that ranks and shards stay put."""

from __future__ import annotations

from heapq import nsmallest

from immutables import Map

from orchestrator.recovery.state import NodeState, RunState


def ranks_of(run: RunState, node: str) -> range:
    """Ranks that `node` holds in the gang; empty when it is not in it."""
    if node not in run.placement:
        return range(0)
    return ranks_at(run, run.placement.index(node))


def ranks_at(run: RunState, index: int) -> range:
    per_node = run.plan.ranks_per_node
    return range(index * per_node, (index + 1) * per_node)


def node_of(run: RunState, rank: int) -> str:
    """Node of a rank; empty when its place is vacant or there is no such rank."""
    index = rank // run.plan.ranks_per_node
    return run.placement[index] if 0 <= index < len(run.placement) else ""


def members(run: RunState) -> list[str]:
    return [node for node in run.placement if node]


def missing(run: RunState) -> int:
    return run.placement.count("") if run.placement else run.plan.nodes


def fill(run: RunState, free: Map[str, None], nodes: Map[str, NodeState]) -> tuple[str, ...]:
    """The placement with every vacant index filled from `free`: fewest recent failures first, then by name.

    Raises ValueError when `free` has too few.
    """
    need = missing(run)
    if need > len(free):
        raise ValueError(f"{need} nodes are needed and {len(free)} are free")
    spares = iter(nsmallest(need, free, key=lambda name: (len(nodes[name].failures_ns), name)))
    return tuple(node or next(spares) for node in run.placement or ("",) * run.plan.nodes)


def shortage(run: RunState, free: int, holding: Map[str, int]) -> str:
    """What a run that cannot be placed waits for."""
    need = missing(run)
    text = f"waits for {need} {'node' if need == 1 else 'nodes'}: {free} {'is' if free == 1 else 'are'} free"
    others = sorted((name, count) for name, count in holding.items() if name != run.run and count)
    for name, count in others[:3]:
        text += f", run {name} holds {count}"
    return text + (f", {len(others) - 3} more runs hold nodes" if len(others) > 3 else "")


def shards_covered(run: RunState) -> bool:
    """Whether every shard has a rank that left with its state. Rank r holds shard r mod shards (replicas outermost)."""
    shards = run.plan.shards
    return len({rank % shards for rank in run.holders}) == shards
