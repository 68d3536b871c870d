"""How far generated tests search: the same examples every time, unless asked for more.

    HYPOTHESIS_PROFILE=wide .venv/bin/python -m pytest tests/test_properties.py

searches many more, other ones in every run.
"""

import os

from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=15)
settings.register_profile("wide", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
