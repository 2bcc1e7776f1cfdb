"""A short form of the kill campaign (docs/training.md)."""

import pytest
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
