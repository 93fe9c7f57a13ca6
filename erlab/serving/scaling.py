"""Scales the systems of Table I to a profile's machine, and places their engines on its devices.

>>> from erlab.serving import profiles
>>> laptop = profiles.profile("laptop")
>>> scale(paper.SYSTEMS["v2"]["D"], laptop, 4, 32).title
'tiny 70B int8, 1 core, 4 experts'
"""

from dataclasses import replace

from erlab import machine, paper
from erlab.serving.engines.kinds import kind
from erlab.serving.profiles import systems
from erlab.spec import Expert, Profile, System


def devices(to: Profile) -> tuple[int, ...]:
    """The numbers of what the profile's engines share: its GPUs or, where it has none, this process's CPU cores."""
    return tuple(range(to.gpus)) or machine.cores()


def scale(system: System, to: Profile, devices: int, max_batch_size: int | None = None) -> System:
    """What plays `system` on that many devices; `max_batch_size` defaults to the profile's largest limit."""
    return kind(to).scale(system, to, devices, max_batch_size or max(to.batch_limits))


def placement(system: System, devices: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The devices of each of the system's engines, in order and without overlap where there are enough."""
    width = system.expert.cores or system.expert.tensor_parallel
    return tuple(tuple(devices[(i * width + j) % len(devices)] for j in range(width)) for i in range(system.count))


def preliminary_systems(to: Profile) -> dict[str, System]:
    """Return the systems of Fig. 3 by name: one engine of the big model on half or all of the devices."""
    count = len(devices(to))
    found = {}
    for share, tensor_parallel in (("half", 4), ("all", 8)):
        if share == "all" and "C" not in to.systems:
            continue
        for letter in [name for name in ("A", "B") if name in to.systems]:  # FP8 and FP16
            original = paper.SYSTEMS["v2"][letter]
            expert = replace(original.expert, tensor_parallel=tensor_parallel)
            for limit in to.batch_limits:
                system = scale(replace(original, expert=expert), to, count, limit).preliminary(share)
                found[system.name] = system
    return found


def experts(to: Profile) -> list[Expert]:
    """The experts that the study may serve, one an engine: Table I and the preliminary runs, with all batch limits."""
    count = len(devices(to))
    limits = sorted(to.batch_limits, reverse=True)
    served = [scale(s, to, count, limit) for limit in limits for s in systems(to).values()]
    served += preliminary_systems(to).values()
    found: dict[str, Expert] = {}
    for system in served:
        found.setdefault(kind(to).engine_name(system.expert), system.expert)
    return list(found.values())
