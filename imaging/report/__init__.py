"""Predictions -> Findings -> Report -> files: one result object, many renderings."""
