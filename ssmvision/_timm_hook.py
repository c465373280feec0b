"""Registers our models with timm whenever timm is imported, without importing it ourselves.

timm has no plugin entry point: a model exists for `timm.create_model` once the module that defines it has run. Users
expect `import ssmvision` to be enough, in either order, yet importing timm (and torch) there would make
`ssmvision --help` take seconds. So where timm is not loaded yet, a finder waits on `sys.meta_path` for the import of
timm, lets timm finish, imports `ssmvision.models`, and is gone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["install"]

_MODELS = "ssmvision.models"


def install() -> None:
    """Register our models now if timm is loaded, else right after its import. Calling it again changes nothing."""
    target = _module_to_wait_for()
    if target is None:
        import_module(_MODELS)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(target))


def _module_to_wait_for() -> str | None:
    timm = sys.modules.get("timm")
    if timm is None:
        return "timm"
    half_way = getattr(timm.__spec__, "_initializing", False)
    # `import ssmvision` from within timm's own import: all that our models need is there once timm.models is.
    # (In another thread's import of timm, importing our models waits for it on timm's module lock.)
    return "timm.models" if half_way and "timm.models" not in sys.modules else None


class _Finder(MetaPathFinder):
    """Finds `target` as the other finders do, with a loader that imports our models afterwards."""

    def __init__(self, target: str) -> None:
        self.target = target

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.target:
            return None
        for finder in list(sys.meta_path):
            # Asking for a spec is not importing (`importlib.util.find_spec("timm")`), so the hook stays in place here.
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader, self)
                return spec
        return None


class _Loader(Loader):
    """Runs the module with its own loader, hands the module back to that loader, then imports our models."""

    def __init__(self, inner: Loader, finder: _Finder) -> None:
        self.inner, self.finder = inner, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The real loader answers for resources, source and reloading from here on.
        module.__loader__ = self.inner
        if module.__spec__ is not None:
            module.__spec__.loader = self.inner
        self.inner.exec_module(module)
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        # Another thread may be importing our models and waiting for timm, which this thread holds: they will be
        # registered without us, and waiting for them in turn would be a deadlock.
        if _MODELS not in sys.modules:
            import_module(_MODELS)

    def __getattr__(self, name: str) -> object:
        # A spec that was only asked for (find_spec) still offers get_filename, get_source, is_package and the like.
        return getattr(self.inner, name)
