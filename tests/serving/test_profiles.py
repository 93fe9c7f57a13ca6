"""The machine profiles."""

from erlab.serving import profiles
from erlab.serving.engines.kinds import ENGINE_KINDS


def test_every_profile_names_a_kind_of_engines():
    assert {profile.engine for profile in profiles.PROFILES.values()} <= set(ENGINE_KINDS)
