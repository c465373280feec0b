"""pyproject.toml, constraints.txt and the table of extras say the same thing."""

from __future__ import annotations

import re
from importlib.metadata import metadata, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ssmvision import __version__, ops
from ssmvision.extras import EXTRAS

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = [Requirement(line) for line in requires("ssmvision") or []]


def of_extra(extra: str) -> set[str]:
    return {
        canonicalize_name(requirement.name)
        for requirement in REQUIREMENTS
        if requirement.marker is not None and f'extra == "{extra}"' in str(requirement.marker)
    }


@pytest.mark.parametrize("extra", EXTRAS)
def test_extras_name_what_they_bring(extra: str) -> None:
    providers = packages_distributions()
    named = {canonicalize_name(providers[module][0]) for module in EXTRAS[extra]}
    assert named == of_extra(extra) - {"ssmvision"}


def test_constraints_pin_every_direct_requirement_within_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    for requirement in REQUIREMENTS:
        if requirement.name != "ssmvision":
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_version_is_said_once_and_cited() -> None:
    assert metadata("ssmvision")["Version"] == __version__
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^## \[{re.escape(__version__)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_readme_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert not [link for link in links if not (ROOT / link).exists()]


def test_ops_offers_every_public_operator() -> None:
    from ssmvision.kernels import selective_scan

    assert set(selective_scan.__all__) <= set(ops.__all__)
    assert all(hasattr(ops, name) for name in ops.__all__)
