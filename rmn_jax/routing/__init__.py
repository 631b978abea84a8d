"""Routing: memories and the nearest one (eqs. 4 and 9), batch layouts, and the routers."""

from rmn_jax.routing.layout import (
    Layout,
    Slots,
    Sorted,
    Tiles,
    make_slots,
    make_tiles,
    sort_by_unit,
    take_rows,
    to_layout,
)
from rmn_jax.routing.memory import (
    METRICS,
    UnitSums,
    dead_units,
    global_average_pool,
    load_entropy,
    memory_drift,
    nearest_unit,
    squared_distances,
    unit_length,
    unit_sums,
    update_memory,
)
from rmn_jax.routing.routers import ROUTERS, Router, Routing, StageInput

__all__ = [
    "METRICS",
    "ROUTERS",
    "Layout",
    "Router",
    "Routing",
    "Slots",
    "Sorted",
    "StageInput",
    "Tiles",
    "UnitSums",
    "dead_units",
    "global_average_pool",
    "load_entropy",
    "make_slots",
    "make_tiles",
    "memory_drift",
    "nearest_unit",
    "sort_by_unit",
    "squared_distances",
    "take_rows",
    "to_layout",
    "unit_length",
    "unit_sums",
    "update_memory",
]
