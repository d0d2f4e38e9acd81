"""The numbers and choices that `decide` follows. Data only: a policy can be compared, journaled and simulated."""

from __future__ import annotations

import msgspec


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Deadlines are seconds in a phase before the controller climbs to the next rung."""

    checking_deadline_s: float = 30.0
    start_deadline_s: float = 180.0
    isolate_deadline_s: float = 5.0
    place_deadline_s: float = 30.0
    form_deadline_s: float = 30.0
    restore_deadline_s: float = 60.0
    first_step_deadline_s: float = 60.0
    stop_grace_s: float = 1.0
    # For the reports that a node kept while nobody was connected to tell how its missing trainers ended.
    reconcile_grace_s: float = 1.0
    # Recoveries in a row without a new step before the run is given up.
    max_recoveries_without_progress: int = 5
    backoff_base_s: float = 0.5  # before the second and later recovery without progress; doubles each time
    backoff_max_s: float = 60.0
    # A node whose trainers fail this often within the window is suspect even when its GPUs look well.
    node_failures_to_quarantine: int = 3
    node_failure_window_s: float = 3600.0
    quarantine_actions: tuple[str, ...] = (
        "reset_gpu", "drain_and_reset", "reboot_node", "restart_fabric_manager", "replace", "inspect",
    )  # fmt: skip
    # No automatic quarantine beyond this share of the known nodes: rather one bad check than a sick fleet.
    max_quarantined_share: float = 0.5
    preflight: bool = True
