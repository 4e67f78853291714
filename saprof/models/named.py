"""Networks that a command line names: ours, torchvision's, timm's, and those that a function of the user returns.

The name of a registered network is read without torch. Another package is imported when one of its networks is named.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

from saprof.models.catalogue import MODELS, list_models, named_model
from saprof.models.defined import names_in
from saprof.text import nearest, unknown

if TYPE_CHECKING:
    from torch import nn

    from saprof.models.inputs import Sizes

REGISTERED, TORCHVISION, TIMM, OWN = "registered", "torchvision", "timm", "own"
"""The kinds of named networks."""
OTHERS = ("torchvision:NAME", "timm:NAME", "package.module:function")
"""The forms of the names of networks that are not registered."""
IMAGE_SIDE = 224
EXPECTED = "expected package.module:function, which returns an nn.Module, or a pair of an nn.Module and its inputs"
INSTALL = {
    TORCHVISION: "pip install torchvision --index-url https://download.pytorch.org/whl/cpu for a CPU build of torch, "
    "else pip install torchvision",
    TIMM: "pip install timm",
}


@dataclass(frozen=True)
class Built:
    """A network, and the inputs that its function returned with it; None if it returned the network alone."""

    module: nn.Module
    inputs: Any = None


@dataclass(frozen=True, kw_only=True)
class NamedNetwork:
    """A network that a command line names."""

    name: str
    """As the user wrote it."""
    kind: str
    """`registered`, `torchvision`, `timm` or `own`."""
    attends: bool = False
    """Whether it contains attention layers of saprof."""
    image_side: int | None = IMAGE_SIDE
    """The default side of its images in pixels; None if it has inputs of its own."""
    sizes: Sizes | None = None
    """The batch and the map of its own inputs; None if it takes images."""
    digest: str = ""
    """A hash of the sources that define a network that is not registered."""

    @property
    def has_choices(self) -> bool:
        """Whether it takes `attention` and `backend` as options."""
        return self.kind == REGISTERED and self.attends

    def build(self, **overrides: Any) -> Built:
        """The network with new weights, on the CPU, and its own inputs. `overrides` are those of `create_model`, for a
        registered network. Raises ValueError if a package is missing, or if the user's function fails."""
        if self.kind == REGISTERED:
            from saprof.models.build import create_model

            return Built(create_model(self.name, **overrides))
        if overrides:
            raise ValueError(f"{', '.join(overrides)} cannot be set for {self.name}; expected a registered network")
        _, _, name = self.name.partition(":")
        if self.kind == OWN:
            return _own(self.name)
        return Built(_of_torchvision(name) if self.kind == TORCHVISION else _package(TIMM).create_model(name))

    def example(self, built: Built, batch: int = 1, side: int | None = None) -> Any:
        """The network's own inputs; or `batch` random images of `side` × `side` pixels, the same every time. The
        default side is `image_side`."""
        from saprof.models.inputs import image_channels, images

        if built.inputs is not None:
            return built.inputs
        return images(batch, side or self.image_side or IMAGE_SIDE, image_channels(built.module))


def read_network(name: str) -> NamedNetwork:
    """The network of this name. Raises ValueError for an unknown name, a missing package, or a function that fails; a
    function of the user is called once, to check what it returns."""
    if name in MODELS:
        model = named_model(name)
        return NamedNetwork(name=name, kind=REGISTERED, attends=model.attends, image_side=model.image)
    kind, _, rest = name.partition(":")
    if not kind or not rest:
        raise ValueError(unknown("model", name, list_models(), f"saprof.list_models(), or {', '.join(OTHERS)}"))
    if kind not in (TORCHVISION, TIMM):
        return _read_own(name)
    package = _package(kind)
    if rest not in (package.list_models() if kind == TORCHVISION else [rest] * package.is_model(rest)):
        raise ValueError(
            f"unknown model {name!r}; expected one of {package.__name__}.list_models() in {kind} {_version(kind)}"
        )
    side = IMAGE_SIDE if kind == TORCHVISION else _side_in_timm(package, rest)
    return NamedNetwork(name=name, kind=kind, image_side=side, digest=_digest(_version(kind).encode()))


def read_networks(names: str) -> list[NamedNetwork]:
    """The networks of a comma list, each once; `all` stands for all registered ones. Raises like `read_network`."""
    listed = list_models() if names == "all" else [name.strip() for name in names.split(",")]
    return [read_network(name) for name in dict.fromkeys(listed)]


def _read_own(name: str) -> NamedNetwork:
    _refuse_unknown(name)  # before torch is imported, which takes seconds
    from saprof.layers import LocalAttention
    from saprof.models.inputs import sizes

    built = _own(name)
    layers = list(built.module.modules())
    known = built.inputs is not None
    return NamedNetwork(
        name=name,
        kind=OWN,
        attends=any(isinstance(layer, LocalAttention) for layer in layers),
        image_side=None if known else IMAGE_SIDE,
        sizes=sizes(built.inputs) if known else None,
        digest=_digest(*_sources({name.partition(":")[0], *(type(layer).__module__ for layer in layers)})),
    )


def _own(name: str) -> Built:
    """What the user's function returns."""
    function = _function(name)
    try:
        returned = function()
    except (Exception, SystemExit) as error:  # a function of a user can raise anything
        raise ValueError(f"model {name!r} fails: {_told(error)}") from error
    return _checked(name, returned)


def _refuse_unknown(name: str) -> None:
    """ValueError if the source of the module shows that it does not define the function."""
    module, _, attribute = name.partition(":")
    _find_here()
    known, first = names_in(module), attribute.partition(".")[0]
    if known is not None and first not in known:
        raise ValueError(
            f"model {name!r} cannot be imported: AttributeError: module {module!r} has no attribute {first!r}; "
            f"{EXPECTED}{nearest(first, known)}"
        )


def _find_here() -> None:
    """Let modules in the current directory be imported."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)


def _function(name: str) -> Callable[[], Any]:
    module, _, attribute = name.partition(":")
    _find_here()
    try:
        function = reduce(getattr, attribute.split("."), import_module(module))
    except (Exception, SystemExit) as error:  # a module of a user can raise anything
        raise ValueError(f"model {name!r} cannot be imported: {_told(error)}; {EXPECTED}") from error
    if not callable(function) or _is_module(function):
        raise ValueError(f"model {name!r} is an object of type {type(function).__name__}; {EXPECTED}")
    return function


def _checked(name: str, returned: Any) -> Built:
    from saprof.models.inputs import arguments

    if _is_module(returned):
        return Built(returned)
    if not (isinstance(returned, tuple) and len(returned) == 2 and _is_module(returned[0])):
        raise ValueError(f"model {name!r} returns {_kind(returned)}; {EXPECTED}")
    try:
        arguments(returned[1])
    except ValueError as error:
        raise ValueError(f"model {name!r} returns a pair: {error}") from None
    return Built(*returned)


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {', '.join(type(part).__name__ for part in value) or 'nothing'}"
    return f"an object of type {type(value).__name__}"


def _is_module(value: Any) -> bool:
    from torch import nn

    return isinstance(value, nn.Module)


def _told(error: BaseException) -> str:
    """Type, message and place of an exception, on one line."""
    message = " ".join(str(error).split())
    where = place(error)
    return f"{type(error).__name__}{': ' * bool(message)}{message}{f' ({where})' if where else ''}"


def place(error: BaseException) -> str | None:
    """File and line of the user's code where an exception was raised; None if no code of the user was running."""
    if isinstance(error, SyntaxError):
        return None  # its message has the place
    frames = [(Path(frame.f_code.co_filename), line) for frame, line in walk_tb(error.__traceback__)]
    others = (Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib")), Path(__file__).parents[1])
    own = [
        f"{path}:{line}"
        for path, line in frames
        if path.is_absolute() and not any(path.is_relative_to(folder) for folder in others)
    ]
    return own[-1] if own else None


def _of_torchvision(name: str) -> nn.Module:
    from inspect import signature

    models = _package(TORCHVISION)
    known = signature(models.get_model_builder(name)).parameters
    return models.get_model(name, **{option: None for option in ("weights", "weights_backbone") if option in known})


def _package(kind: str) -> Any:
    """The module of torchvision's or timm's networks. Raises ValueError if it is missing or cannot be imported."""
    try:
        return import_module({TORCHVISION: "torchvision.models", TIMM: "timm"}[kind])
    except ModuleNotFoundError as error:
        raise ValueError(f"networks of {kind} need {error.name}, which is not installed; {INSTALL[kind]}") from None
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        fix = INSTALL[TORCHVISION if "torchvision" in reason else kind]
        raise ValueError(f"{kind} is installed, but its import fails ({reason}); {fix}") from None


def _side_in_timm(timm: Any, name: str) -> int:
    """The side of the images that a network of timm is for."""
    settings = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return settings.input_size[-1] if settings is not None else IMAGE_SIDE


def _version(kind: str) -> str:
    return str(getattr(import_module(kind), "__version__", "unknown"))


def _sources(modules: set[str]) -> list[bytes]:
    """The sources of modules, except those of torch and saprof, which a run folder has the versions of."""
    others = sorted(name for name in modules if name.partition(".")[0] not in ("torch", "saprof"))
    paths = [getattr(sys.modules.get(name), "__file__", None) for name in others]
    return [Path(path).read_bytes() for path in paths if path]


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
