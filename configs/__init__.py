"""YAML files of the recipes, shipped as data."""
