"""Base classes of methods."""

from utils.cli import plugins

__path__ = plugins.search_path(__name__, __path__)
