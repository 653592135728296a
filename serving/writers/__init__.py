"""Samples as files."""
