"""Engines in the trainer's own processes."""
