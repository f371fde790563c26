"""Checkpoint folders: made, saved, checked, followed back to the base."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
