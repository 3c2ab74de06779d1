"""Template: a window in code. The concept pack beside it is data, and the manifest names both."""

from sldcore.contributions import WindowKind
from sldcore.hookspecs import hookimpl

SLD_API = 1


@hookimpl
def sld_windows():
    """A policy says ``guidance: {window: {unit: template-late}}``."""
    return [
        WindowKind(
            name="template-late",
            description="acts in the second half of the run",
            create=lambda options: lambda step: 1.0 if step.fraction >= 0.5 else 0.0,
        )
    ]
