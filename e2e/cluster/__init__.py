"""A real single-node Kubernetes without Docker: `Cluster(name).up()`, `.kubeconfig`, `.down()`."""

from e2e.cluster.errors import CannotRunError, ClusterError
from e2e.cluster.local import Cluster

__all__ = ["CannotRunError", "Cluster", "ClusterError"]
