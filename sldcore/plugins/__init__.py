"""Plugins: found when needed, each loaded once and isolated, with a record of what became of it.

discovery     what is installed, and what ``SLD_PLUGINS`` lets in
manifest      what a plugin says of itself without being run
loading       one plugin, loaded once and in bounded time
loader        what it contributes, or the reason why not; with hooks.py, pluggy's part of it
quiet         stdout while plugins are loaded
claims        who owns a name
records       what is listed
reasons       what is said of those that are not used
requirements  what policies pin
source        :class:`Plugins`: all of it as a source of the catalogue
"""

from __future__ import annotations

from sldcore.plugins.source import Plugins

__all__ = ["Plugins"]
