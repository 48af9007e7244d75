"""The README as an index of packages shows it: links into the repository lead nowhere there, so their words stay alone."""

import re
from pathlib import Path

from setuptools import setup

readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
setup(
    long_description=re.sub(r"\[([^]]+)\]\((?!https?://)[^)]+\)", r"\1", readme),
    long_description_content_type="text/markdown",
)
