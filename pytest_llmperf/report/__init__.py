"""Verdicts as text: one file per format."""
