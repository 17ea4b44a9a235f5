"""Real checkpoints, found where `fauna` finds them (`scripts/fetch_test_models.py` puts them there)."""

import os
from pathlib import Path


def cached(name):
    """The folder of a checkpoint in the local cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("FAUNA_CACHE") or home / "fauna") / name
    if not folder.is_dir():
        raise SystemExit(f"{folder} is missing: run scripts/fetch_test_models.py first")
    return folder
