"""The fixtures of helm and of a real API server."""

from tests.kubernetes_fixtures import cluster, cluster_kubectl, helm, kubeconfig, kubectl, kubectl_program, namespace

__all__ = ["cluster", "cluster_kubectl", "helm", "kubeconfig", "kubectl", "kubectl_program", "namespace"]
