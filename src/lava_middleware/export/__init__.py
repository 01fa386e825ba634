"""Followers of the journal: what carries usage records out of the building, or shows them as spans and metrics."""
