"""Measures an online test from exposures, events and covariates. The operator decides from these numbers."""
