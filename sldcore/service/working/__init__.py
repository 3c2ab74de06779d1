"""Carrying jobs out: a bounded queue, batches, worker processes or Ray's replicas, and what happens when one dies."""
