"""What can go wrong with a cluster, by whose turn it is to act."""

from __future__ import annotations


class ClusterError(Exception):
    """Something about the cluster failed; the message says what, and where the log is."""

    exit_code = 1


class CannotRunError(ClusterError):
    """This machine or this environment cannot do what was asked, however often it is tried.

    The message is one sentence that says what would have to be different.
    """

    exit_code = 2
