"""Short forms of the two campaigns (docs/interruptions.md)."""

import pytest
from end_campaign import go_on as end_trainings
from kill_campaign import Campaign, go_on


@pytest.mark.slow
def test_killed_and_resumed_runs_end_like_the_unbroken_one(tmp_path):
    campaign = Campaign(seed=1)
    go_on(campaign, kills=8, seconds=600, folder=tmp_path)
    assert campaign.kills == 8
    assert [trial for trial in campaign.trials if trial.differs] == []
    assert sum(campaign.phases().values()) == 8
    campaign.write(tmp_path / "kills.json")
    assert Campaign.read(tmp_path / "kills.json") == campaign


@pytest.mark.slow
def test_trainings_ended_from_outside_end_as_documented_and_go_on_to_equal_bytes(tmp_path):
    trials = end_trainings(6, 900, tmp_path, seed=100)
    assert len(trials) == 6
    assert [trial for trial in trials if trial.faults] == []
