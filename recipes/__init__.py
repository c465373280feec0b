"""Recipes: train, predict, evaluate and report on real data (needs the extra `recipes`)."""
