"""Entropy patterns of responses: how entropy is distributed, over which tokens and places, and how training changes it."""
