"""`make demo`: two turns of the wheel with a small real model, on a real cluster."""
