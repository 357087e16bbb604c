"""A real cluster, real images and real models: what only shows end to end."""
