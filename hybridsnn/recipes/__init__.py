"""Recipes: read, plan and run them, and collect their results in verified tables."""
