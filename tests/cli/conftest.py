"""Every command-line test has a cache of its own and none of the user's settings."""

import pytest


@pytest.fixture(autouse=True)
def private_settings(tmp_path_factory, monkeypatch):
    for name in ("DGMN2_MODEL", "DGMN2_OFFLINE", "COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DGMN2_CACHE", str(tmp_path_factory.mktemp("cache")))
