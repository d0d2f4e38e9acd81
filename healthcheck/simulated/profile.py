"""What healthy parts say: the values a twin shows as long as nothing is injected.

Numbers are those of real parts under driver 580; an idle HGX B200 GPU shows 37 to 53 C by its place
in the chassis, 88 C less that as its margin, and 195 to 205 W.
"""

from __future__ import annotations

from dataclasses import dataclass

BUSES = (0x1B, 0x43, 0x52, 0x61, 0x9D, 0xC3, 0xD1, 0xDF)


@dataclass(frozen=True)
class Profile:
    name: str
    gpu_name: str
    pci_device_id: int  # device << 16 | vendor
    memory_mib: int
    reserved_mib: int
    power_limit_mw: int
    idle_power_mw: int
    sm_max_mhz: int
    sm_idle_mhz: int
    memory_mhz: int
    nvlinks: int
    link_xid: int  # what a failing NVLink is reported as
    fabric_health_mask: int
    idle_c: int
    idle_margin_c: int
    slowdown_margin_c: int
    shutdown_margin_c: int
    remap_banks: int
    software_power_cap_ns: int  # a large counter is normal
    driver: str = "580.105.08"
    vbios: str = "00.00.00.00.00"
    pcie_generation: int = 5
    pcie_width: int = 16
    event_types: int = 0xFF9F
    buses: tuple[int, ...] = BUSES

    @property
    def gpus(self) -> int:
        return len(self.buses)


HGX_B200 = Profile(
    name="hgx_b200",
    gpu_name="NVIDIA B200",
    pci_device_id=0x290110DE,
    memory_mib=183359,
    reserved_mib=728,
    power_limit_mw=1_000_000,
    idle_power_mw=195_000,
    sm_max_mhz=1965,
    sm_idle_mhz=120,
    memory_mhz=3996,
    nvlinks=18,
    link_xid=149,
    fabric_health_mask=0x80,  # access timeout recovery: false; the rest is not supported
    idle_c=39,
    idle_margin_c=49,
    slowdown_margin_c=-3,
    shutdown_margin_c=-5,
    remap_banks=3840,
    software_power_cap_ns=770_000_000_000,
)

HGX_H100 = Profile(
    name="hgx_h100",
    gpu_name="NVIDIA H100 80GB HBM3",
    pci_device_id=0x233010DE,
    memory_mib=81559,
    reserved_mib=551,
    power_limit_mw=700_000,
    idle_power_mw=70_000,
    sm_max_mhz=1980,
    sm_idle_mhz=345,
    memory_mhz=2619,
    nvlinks=18,
    link_xid=74,
    fabric_health_mask=0x2,  # degraded bandwidth: false
    idle_c=32,
    idle_margin_c=55,
    slowdown_margin_c=-2,
    shutdown_margin_c=-5,
    remap_banks=2560,
    software_power_cap_ns=40_000_000_000,
)

PROFILES = {profile.name: profile for profile in (HGX_B200, HGX_H100)}
