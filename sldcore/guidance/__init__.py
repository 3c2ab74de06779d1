"""Guidance methods: what is done with the predictions of one step. See :mod:`sldcore.guidance.base`."""
