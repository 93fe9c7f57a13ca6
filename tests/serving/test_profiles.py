"""The table of profiles in the module's docstring."""

from erlab.serving import profiles
from erlab.serving.engines.kinds import ENGINE_KINDS


def test_the_documented_table_is_that_of_the_profiles():
    lines = [line for line in profiles.__doc__.splitlines() if line.startswith("|")]
    documented = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert [row[0] for row in documented] == list(profiles.PROFILES)
    for name, machine, _, systems, users in documented:
        profile = profiles.PROFILES[name]
        gpus = "CPU" if not profile.gpus else "one" if profile.gpus == 1 else str(profile.gpus)
        first, last = (int(n.replace(",", "")) for n in (users.split()[0].strip(","), users.split()[-1]))
        assert (machine.split()[0], systems) == (gpus, ", ".join(profile.systems))
        assert (first, last) == (profile.loads[0], profile.loads[-1])


def test_every_profile_names_a_kind_of_engines():
    assert {profile.engine for profile in profiles.PROFILES.values()} <= set(ENGINE_KINDS)
