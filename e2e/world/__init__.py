"""The world of the cluster tests: an operator, a claim with the tiny model and data, manifests to apply."""
