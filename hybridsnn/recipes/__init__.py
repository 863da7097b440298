"""Recipes: read, planned, run; and the tables of numbers that they gave, each traced to its run."""
