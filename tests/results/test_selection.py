"""Selection of the preliminary experiments by typed fields, or by names in records of older versions."""

import pandas as pd
import pytest
import synthetic

from erlab.errors import ErlabError
from erlab.paper import SYSTEMS
from erlab.results import records, selection

FIELDS = ["half", "precision", "max_batch_size"]


def without(found: records.Records, *fields: str) -> records.Records:
    """Return records whose runs lack some fields of their descriptions."""
    return records.Records(found.requests, found.runs.drop(columns=list(fields)))


@pytest.mark.parametrize("fields", [["half"], FIELDS, [*FIELDS, "experiment"]])
def test_older_records_tell_the_preliminary_system_by_its_name(fields):
    current = synthetic.preliminary(loads=(1, 8))
    chosen = selection.preliminary_requests(current)
    assert len(chosen) == len(current.requests)
    older = selection.preliminary_requests(without(current, *fields))
    pd.testing.assert_frame_equal(older[FIELDS], chosen[FIELDS])


def test_the_description_counts_more_than_the_name():
    current = synthetic.preliminary(loads=(1,))
    renamed = records.Records(current.requests.assign(system="any name"), current.runs.assign(half="all"))
    assert set(selection.preliminary_requests(renamed)["half"]) == {"all"}
    with pytest.raises(ErlabError, match="No records of the preliminary experiments"):
        selection.preliminary_requests(without(renamed, "half"))


def test_a_preliminary_system_is_named_after_its_engine():
    system = SYSTEMS["v2"]["A"].preliminary("half")
    assert (system.name, system.share, system.count) == ("P-half-FP8-b256", "half", 1)
    with pytest.raises(ErlabError, match="'share' parameter of System must be half, all or None. Got 'third'"):
        system.preliminary("third")
