"""Maps the root folders onto one import name; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

ROOTS = {"ssmvision": "ssmvision", "ssmvision.kernels": "kernels", "ssmvision.recipes": "recipes", "ssmvision.configs": "configs"}
packages = [f"{name}{sub}" for name, folder in ROOTS.items() for sub in ["", *(f".{p}" for p in find_packages(folder))]]

setup(packages=packages, package_dir=ROOTS)
