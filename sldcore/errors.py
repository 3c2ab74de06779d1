"""What can go wrong, as a tree.

    SLDError
    ├── ConfigurationError (ValueError)      found before the first denoising step
    │   ├── PolicyError                      a policy that cannot be read or does not make sense
    │   ├── ConceptError                     a concept or pack that is missing, malformed or too long
    │   ├── PluginError                      a plugin or contribution that is missing, broken, disabled or ambiguous
    │   ├── GuidanceError                    guidance that cannot act: no classifier-free guidance, impossible window
    │   ├── UnsupportedPipelineError         no family knows this pipeline class
    │   └── ModelError                       weights that cannot be had or are refused (pickle)
    ├── SessionError (RuntimeError)          a denoiser that another session is guarding
    └── SafetyFailure (RuntimeError)         safety failed while it ran: ``on_error: raise``, or inside ``guard``

Every message says what was asked, what is available and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SLDError(Exception):
    """Base of all errors that sldcore raises on purpose."""


class ConfigurationError(SLDError, ValueError):
    """A request that cannot be carried out; raised before the first denoising step."""


class PolicyError(ConfigurationError):
    """A policy that cannot be read or does not make sense."""


class ConceptError(ConfigurationError):
    """A concept or concept pack that is missing, malformed or too long for the text encoder."""


class PluginError(ConfigurationError):
    """A plugin, or something that a policy names, that is missing, broken, disabled or ambiguous."""


class GuidanceError(ConfigurationError):
    """Guidance that could not act as the policy says."""


class UnsupportedPipelineError(ConfigurationError):
    """A pipeline class that no family knows."""


class ModelError(ConfigurationError):
    """Weights that cannot be had, or that are refused because they are pickled."""


class SessionError(SLDError, RuntimeError):
    """A denoiser that another session is guarding already."""


class SafetyFailure(SLDError, RuntimeError):
    """Safety failed while it ran, and the policy says ``on_error: raise`` (or the caller uses ``guard``)."""


def nearest(asked: str, available: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` if something available is close to what was asked, else an empty string."""
    close = get_close_matches(asked, list(available), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def listed(names: Iterable[str]) -> str:
    """Names for a message: sorted, comma separated, or ``none``."""
    return ", ".join(sorted(names)) or "none"
