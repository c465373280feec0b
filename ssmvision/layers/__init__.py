"""Building blocks: nn.Modules on top of `ssmvision.kernels`."""

# Before any of the modules here: timm's import brings our models in (see `ssmvision._timm_hook`), which would find the
# module that imported timm half-loaded.
import timm  # noqa: F401
