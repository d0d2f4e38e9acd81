"""Which rank holds which shard in which replica. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """HSDP on a mesh (replicas, shards): rank = replica * shards + shard. Ranks of one shard number hold equal state."""

    rank: int
    replicas: int
    shards: int

    def __post_init__(self) -> None:
        if self.replicas < 1 or self.shards < 1 or not 0 <= self.rank < self.world:
            raise ValueError(f"rank {self.rank} has no place on a mesh of {self.replicas} x {self.shards}")

    @property
    def world(self) -> int:
        return self.replicas * self.shards

    @property
    def replica(self) -> int:
        return self.rank // self.shards

    @property
    def shard(self) -> int:
        return self.rank % self.shards

    def holders(self, shard: int) -> range:
        """Ranks that hold this shard, lowest replica first."""
        return range(shard, self.world, self.shards)
