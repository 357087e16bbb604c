"""Builds the project's images from their real Dockerfiles, without Docker, and brings them into a cluster."""
