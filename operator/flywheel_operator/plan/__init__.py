"""What to do: pure functions from `Observed` to a `Plan`."""
