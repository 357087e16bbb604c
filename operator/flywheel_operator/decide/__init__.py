"""Verdicts: closed sets of answers with a reason and the numbers. Pure functions of what was measured."""
