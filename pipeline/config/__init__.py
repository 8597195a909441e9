"""The recipe."""

from pipeline.config.sections import *  # noqa: F403
