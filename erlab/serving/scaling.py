"""Scaling of the systems of Table I to a profile's machine, and placement of their engines.

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


def devices(profile: Profile) -> tuple[int, ...]:
    """Return the device numbers that engines share: GPUs or, for a profile without, this process's CPU cores."""
    return tuple(range(profile.gpus)) or machine.cores()


def scale(system: System, profile: Profile, count: int | None = None, max_batch_size: int | None = None) -> System:
    """Return the counterpart of a system of the paper on `count` devices (default: all of the profile's machine)."""
    count = len(devices(profile)) if count is None else count
    return kind(profile).scale(system, profile, count, max_batch_size or max(profile.batch_limits))


def placement(system: System, devices: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the devices of each engine of a system, in order and without overlap where there are enough."""
    width = system.expert.cores or system.expert.tensor_parallel
    return tuple(tuple(devices[(i * width + j) % len(devices)] for j in range(width)) for i in range(system.count))


def preliminary_systems(profile: Profile) -> dict[str, System]:
    """Return the systems of Fig. 3 by name: one engine of the large model on half or all of the devices."""
    scaled = {}
    for share, tensor_parallel in (("half", 4), ("all", 8)):
        if share == "all" and "C" not in profile.systems:
            continue
        for letter in [name for name in ("A", "B") if name in profile.systems]:  # FP8 and FP16
            original = paper.SYSTEMS["v2"][letter]
            expert = replace(original.expert, tensor_parallel=tensor_parallel)
            for limit in profile.batch_limits:
                changed = replace(original, expert=expert)
                system = scale(changed, profile, max_batch_size=limit).preliminary(share)
                scaled[system.name] = system
    return scaled


def experts(profile: Profile) -> list[Expert]:
    """Return the experts that a study may serve, one per engine: Table I and preliminary runs, at all batch limits."""
    limits = sorted(profile.batch_limits, reverse=True)
    served = [scale(s, profile, max_batch_size=limit) for limit in limits for s in systems(profile).values()]
    served += preliminary_systems(profile).values()
    by_engine: dict[str, Expert] = {}
    for system in served:
        by_engine.setdefault(kind(profile).engine_name(system.expert), system.expert)
    return list(by_engine.values())
