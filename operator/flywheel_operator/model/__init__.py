"""Typed specs and statuses of our kinds, and `Observed`, the one snapshot of the cluster that a pass looks at."""
