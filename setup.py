"""Maps the root folders onto one import name; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

ROOTS = {f"ssmvision.{name}": name for name in ("kernels", "recipes", "configs")} | {"ssmvision": "ssmvision"}
packages = [f"{name}{sub}" for name, root in ROOTS.items() for sub in ["", *(f".{p}" for p in find_packages(root))]]

setup(packages=packages, package_dir=ROOTS)
