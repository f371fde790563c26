"""Compiled loops are kept where that is possible, and run without it where it is not."""

import errno

import pytest
from numba.core import caching

from domain_tokens.inference.cpu.kernels import can_cache, config


@pytest.mark.parametrize(
    ("writable", "kept"), [("__pycache__", True), ("numba", True), ("", False)]
)
def test_a_read_only_checkout_keeps_its_loops_elsewhere_or_not_at_all(
    monkeypatch, capsys, writable, kept
):
    """numba raised "no locator available" where neither checkout nor home could be written."""
    honest = caching._CacheLocator.ensure_cache_path
    asked = []

    def ensure(self):
        path = self.get_cache_path()
        asked.append(path)
        if not writable or not f"/{path}/".count(f"/{writable}/"):
            raise OSError(errno.EROFS, "Read-only file system")
        honest(self)

    monkeypatch.setattr(caching._CacheLocator, "ensure_cache_path", ensure)
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")  # the user's own folder is read only, too
    assert can_cache() is kept
    assert asked
    assert (config.CACHE_DIR != "") == (writable == "numba")
    assert ("set NUMBA_CACHE_DIR" in capsys.readouterr().err) is not kept
