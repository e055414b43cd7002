"""A CUDA GPU that exists on paper, which runs the code for GPUs where there is none.

A `ShadowTensor` says that it is on ``cuda:N``, and computes on the CPU. It holds real values, so
code that looks at them (beam search, early stopping) runs as on a GPU, and results can be compared
with those of the CPU. `FakeCuda` refuses what a GPU refuses:

- an operation on tensors of two devices, or on a device that is not there,
- ``numpy()`` of a tensor on the device,
- a random generator of another device,
- a tensor that is too large for the memory,
- float64 on ``mps``, which is a device here too.

It also shows two races. What was copied from the device without waiting is garbage until the host
has waited for it. Pinned memory that is written to while it may still be copied from is an error.

Everything that a GPU is asked to do is logged in order: kernels, copies, and where the host waits.

It does not show other rounding, kernels that are missing for a dtype, autocast's own list of
operations for CUDA (that of CPUs is used), several streams, work in other threads, or speed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # else optimisers import it in the middle of a test
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from c3tools import devices

CPU = torch.device("cpu")
GIB = 1 << 30
T = torch.Tensor
_AUTOCAST = torch.autocast
_GROUP_BY_DEVICE = torch._C._group_tensors_by_device_and_dtype
_SET_DATA = T.data.__set__  # type: ignore[attr-defined]
# These copy values to the host, which waits for them
_READS = {
    T.item,
    T.tolist,
    T.is_nonzero,
    T.__bool__,
    T.__complex__,
    T.__float__,
    T.__index__,
    T.__int__,
}
# The shape of what these return depends on values, so the host waits for it
_SIZED_BY_VALUES = {
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "masked_select",
    "nonzero",
    "repeat_interleave",
    "unique_consecutive",
    "unique_dim",
}
# Arguments of these may be on several devices. Indices on the CPU are copied to the device
_MAY_MIX = {"_index_put_impl_", "_to_copy", "copy_", "index", "index_put", "index_put_", "set_"}


def numbered(device: Any) -> torch.device:
    """Return a device with its number."""
    if isinstance(device, int):
        return torch.device("cuda", device)
    device = torch.device(device)
    return torch.device("cuda", 0) if device == torch.device("cuda") else device


def place_in_c3tools() -> str:
    """Return the file and line of c3tools that is running."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename.replace("\\", "/")
        if "/c3tools/" in path and "site-packages" not in path:
            return f"{path.rpartition('/c3tools/')[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "outside of c3tools"


@dataclass(frozen=True)
class Entry:
    """Something that the GPU was asked to do, or that the host waited for.

    Attributes:
        kind: ``kernel``, ``to device``, ``to host``, ``between devices``, ``wait``, ``pin``,
            ``rng`` (the state of the device's generator is read) or ``empty cache``.
        what: the operation.
        where: in c3tools.
        nbytes: of a copy.
        pinned: whether the memory of the host is pinned, so that a copy runs beside the host.
        until: of a wait: the host waits for the entries before this number.
        device: of a read of random states.
    """

    kind: str
    what: str
    where: str
    nbytes: int = 0
    pinned: bool = True
    until: int = 0
    device: int = 0


class ShadowTensor(torch.Tensor):
    """A tensor on the CPU that says it is on a GPU."""

    on_cpu: torch.Tensor
    place: torch.device
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, values: torch.Tensor, place: torch.device) -> ShadowTensor:
        with torch.inference_mode(mode=False):  # autograd takes no tensor that is made in it
            tensor: ShadowTensor = torch.Tensor._make_wrapper_subclass(
                cls,
                values.size(),
                strides=values.stride(),
                storage_offset=values.storage_offset(),
                dtype=values.dtype,
                device=CPU,
            )
            return tensor

    def __init__(self, values: torch.Tensor, place: torch.device) -> None:
        self.on_cpu = values
        self.place = place

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        if not isinstance(value, ShadowTensor) or value.shape != self.shape:
            raise NotImplementedError("data of another device or shape")
        self.on_cpu = value.on_cpu

    def get_device(self) -> int:
        return self.place.index

    def untyped_storage(self) -> Any:
        return self.on_cpu.untyped_storage()

    def data_ptr(self) -> int:
        return self.on_cpu.data_ptr()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.on_cpu!r} on {self.place}"

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copy: torch.Tensor = ShadowTensor(self.on_cpu.detach().clone(), self.place)
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        memo[id(self)] = copy
        return copy

    # With these two, `nn.Module.to` exchanges parameters for those on another device

    def __tensor_flatten__(self) -> tuple[list[str], torch.device]:
        return ["on_cpu"], self.place

    @staticmethod
    def __tensor_unflatten__(
        tensors: Mapping[str, torch.Tensor], place: torch.device, *_: Any
    ) -> ShadowTensor:
        return ShadowTensor(tensors["on_cpu"], place)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        shadows = [x for x in tensors if isinstance(x, ShadowTensor)]
        place = shadows[0].place
        card = FakeCuda.current
        if card is not None:
            card.launch(name, args, tensors)
        result = func(
            *tree_map_only(ShadowTensor, lambda x: x.on_cpu, args),
            **tree_map_only(ShadowTensor, lambda x: x.on_cpu, kwargs),
        )
        if name == "copy_" and not isinstance(args[0], ShadowTensor):
            return args[0]
        # an operation in place returns its argument
        by_values = {id(x.on_cpu): x for x in shadows}

        def on_device(x: torch.Tensor) -> torch.Tensor:
            if id(x) in by_values:
                return by_values[id(x)]
            return ShadowTensor(x, place)

        result = tree_map_only(torch.Tensor, on_device, result)
        if card is not None:
            card.allocate(result)
        return result


class _ToDevice(torch.autograd.Function):
    """A copy to a GPU, through which gradients come back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, place: Any, dtype: Any, options: Any) -> torch.Tensor:
        ctx.source = x.place if isinstance(x, ShadowTensor) else None
        ctx.dtype = x.dtype
        values = x.on_cpu if isinstance(x, ShadowTensor) else x
        return ShadowTensor(values.detach().to(dtype=dtype, copy=True, **options), place)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        values = gradient.on_cpu.to(ctx.dtype)
        back = values if ctx.source is None else ShadowTensor(values, ctx.source)
        return back, None, None, None


class _ToHost(torch.autograd.Function):
    """A copy to the CPU, through which gradients go back."""

    @staticmethod
    def forward(ctx: Any, x: Any, dtype: Any) -> torch.Tensor:
        ctx.dtype = x.dtype
        ctx.place = x.place
        values: torch.Tensor = x.on_cpu.detach().to(dtype=dtype, copy=True)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return ShadowTensor(gradient.to(ctx.dtype), ctx.place), None


class _Generator(torch.Generator):
    """A random generator that says it is on a device."""

    place: torch.device

    def __new__(cls, device: Any = "cpu") -> _Generator:
        generator = super().__new__(cls, "cpu")  # type: ignore[call-arg]
        generator.place = numbered(device)
        return generator

    def __init__(self, device: Any = "cpu") -> None:
        pass

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place


class _Event:
    """An event: the host can wait for what was launched before it, and for nothing later."""

    def __init__(self, **_: Any) -> None:
        self._card = FakeCuda.current
        self._until = 0
        self._time = 0.0

    def record(self, stream: Any = None) -> None:
        assert self._card is not None
        self._until = len(self._card.log)
        self._time = time.perf_counter()

    def synchronize(self) -> None:
        assert self._card is not None
        self._card.wait("event", self._until)

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: _Event) -> float:
        return 1000 * (end._time - self._time)


@dataclass(frozen=True)
class _Copy:
    """A copy between pinned memory and the device that may still run."""

    number: int  # of its entry in the log
    finish: Callable[[], None]


class FakeCuda(TorchFunctionMode):
    """A machine with GPUs, while the block runs.

    Args:
        gpus: how many.
        largest: bytes of the largest tensor that there is memory for.
        capabilities: compute capability of each GPU; those that are missing are as the last one.

    Attributes:
        log: what the GPUs were asked to do, in order.
        largest_so_far: bytes of the largest tensor.
    """

    current: FakeCuda | None = None

    def __init__(
        self,
        gpus: int = 1,
        largest: int | None = None,
        capabilities: Sequence[tuple[int, int]] = ((9, 0),),
    ) -> None:
        super().__init__()
        self.gpus = gpus
        self.largest = largest
        self.log: list[Entry] = []
        self.largest_so_far = 0
        self._capabilities = capabilities
        self._pinned: dict[int, Any] = {}  # keeps the memory, so that no other gets its address
        self._running: list[_Copy] = []
        self._patches = ExitStack()

    def __enter__(self) -> FakeCuda:
        functions: dict[str, Any] = {
            "Event": _Event,
            "_lazy_init": lambda: None,
            "current_device": lambda: 0,
            "current_stream": lambda device=None: None,
            "device_count": lambda: self.gpus,
            "empty_cache": lambda: self.note("empty cache", "empty_cache"),
            "get_device_capability": lambda device=None: self.properties(device).capability,
            "get_device_name": lambda device=None: self.properties(device).name,
            "get_device_properties": self.properties,
            "get_rng_state": self._rng_state,
            "is_available": lambda: True,
            # of the current device, whatever the caller is about to use
            "is_bf16_supported": lambda including_emulation=True: (
                including_emulation or self.properties(0).capability >= (8, 0)
            ),
            "is_initialized": lambda: True,
            "manual_seed": lambda seed: None,
            "manual_seed_all": lambda seed: None,
            "max_memory_allocated": lambda device=None: self.largest_so_far,
            "reset_peak_memory_stats": lambda device=None: None,
            "set_device": lambda device: None,
            "set_per_process_memory_fraction": lambda fraction, device=None: None,
            "set_rng_state": lambda state, device="cuda": None,
            "synchronize": lambda device=None: self.wait("synchronize"),
        }
        for name, function in functions.items():
            self._patches.enter_context(mock.patch.object(torch.cuda, name, function))
        for owner, name, function in (
            (torch, "Generator", _Generator),
            (torch, "autocast", _autocast),
            (devices, "_may_have_gpu", lambda: True),
            (torch._C, "_group_tensors_by_device_and_dtype", _group_by_device),
        ):
            self._patches.enter_context(mock.patch.object(owner, name, function))
        FakeCuda.current = self
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._patches.close()
        FakeCuda.current = None

    def properties(self, device: Any = None) -> Any:
        """Return some of what torch says about a GPU."""
        number = numbered("cuda" if device is None else device).index
        capability = self._capabilities[min(number, len(self._capabilities) - 1)]
        return SimpleNamespace(
            name=f"Shadow {number}",
            capability=capability,
            major=capability[0],
            minor=capability[1],
            total_memory=80 * GIB,
        )

    # What was done

    def entries(self, kind: str) -> list[Entry]:
        """Return the entries of a kind."""
        return [entry for entry in self.log if entry.kind == kind]

    def waits(self) -> list[Entry]:
        """Return the places where the host waited."""
        return self.entries("wait")

    def pageable_copies(self) -> list[Entry]:
        """Return the copies from and to memory that is not pinned: the host cannot go on."""
        return [entry for entry in self.log if not entry.pinned]

    def gpus_whose_rng_was_read(self) -> set[int]:
        """Return the numbers of the GPUs."""
        return {entry.device for entry in self.entries("rng")}

    # What is logged

    def note(self, kind: str, what: str, **facts: Any) -> None:
        """Add an entry to the log."""
        self.log.append(Entry(kind, what, place_in_c3tools(), **facts))

    def wait(self, what: str, until: int | None = None) -> None:
        """Let the host wait for the entries before a number, or for all; copies end."""
        until = len(self.log) if until is None else until
        self.note("wait", what, until=until)
        running = self._running
        self._running = [copy for copy in running if copy.number >= until]
        for copy in running:
            if copy.number < until:
                copy.finish()

    def launch(self, name: str, args: Any, tensors: Sequence[torch.Tensor]) -> None:
        """Start a kernel.

        Raises:
            RuntimeError: if its tensors are on several devices.
        """
        is_backward = torch._C._current_graph_task_id() != -1  # its zeros say that they are on CPU
        places = {x.device for x in tensors if x.dim() or isinstance(x, ShadowTensor)}
        if len(places) > 1 and name not in _MAY_MIX and not is_backward:
            names = " and ".join(sorted(map(str, places)))
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found {names} in {name}, at "
                f"{place_in_c3tools()}"
            )
        self.note("kernel", name)
        if name in _SIZED_BY_VALUES:
            self.wait(name)
        if "index" in name and len(args) > 1 and isinstance(args[1], list | tuple):
            for index in args[1]:
                if isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8):
                    self.wait("index by a mask")

    def allocate(self, result: Any) -> None:
        """Take memory for what a kernel returned.

        Raises:
            torch.OutOfMemoryError: if there is not enough.
        """
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor):
                if x.dtype == torch.float64 and x.device.type == "mps":
                    raise TypeError("MPS has no float64")
                self.largest_so_far = max(self.largest_so_far, x.nbytes)
                if self.largest is not None and x.nbytes > self.largest:
                    raise torch.OutOfMemoryError(
                        f"CUDA out of memory. Tried to allocate {x.nbytes / 2**20:.2f} MiB."
                    )

    def pin(self, x: torch.Tensor, what: str) -> torch.Tensor:
        """Return a tensor of the CPU whose memory counts as pinned from here on."""
        storage = x.untyped_storage()
        self._pinned[storage.data_ptr()] = storage
        self.note("pin", what, nbytes=x.nbytes)
        return x

    def is_pinned(self, x: torch.Tensor) -> bool:
        """Return whether the memory of a tensor is pinned."""
        return x.untyped_storage().data_ptr() in self._pinned

    def copy_to_device(self, source: torch.Tensor, *, beside: bool) -> None:
        """Log a copy to the device; ``beside`` says that the host does not wait for it."""
        is_pinned = self.is_pinned(source)
        self.note("to device", "copy", nbytes=source.nbytes, pinned=is_pinned)
        if is_pinned and beside:
            source = source.detach()
            before = source.clone()
            where = place_in_c3tools()

            def finish() -> None:
                if not torch.equal(source, before):
                    raise AssertionError(
                        f"pinned memory was written to while it was copied from, at {where}"
                    )

            self._running.append(_Copy(len(self.log) - 1, finish))

    def copy_to_host(self, values: torch.Tensor, target: torch.Tensor, *, beside: bool) -> None:
        """Copy values from the device; ``beside`` says that the host does not wait for them."""
        is_pinned = self.is_pinned(target)
        self.note("to host", "copy", nbytes=target.nbytes, pinned=is_pinned)
        if not (is_pinned and beside):
            self.wait("copy to host")
            target.copy_(values)
            return
        snapshot = values.detach().clone()
        target.view(torch.uint8).fill_(0x7F)  # garbage until the copy has ended

        def finish() -> None:
            target.copy_(snapshot)

        self._running.append(_Copy(len(self.log) - 1, finish))

    def _rng_state(self, device: Any = "cuda") -> torch.Tensor:
        self.note("rng", "get_rng_state", device=numbered(device).index)
        self.wait("get_rng_state")
        return torch.zeros(16, dtype=torch.uint8)

    # What is refused, or done on the CPU in place of a GPU

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, options)) if isinstance(x, torch.Tensor)]
        shadows = [x for x in tensors if isinstance(x, ShadowTensor)]
        if func in (T.to, T.cpu, T.cuda):
            return self._move(func, *args, **options)
        if func is T.pin_memory:
            if shadows:
                raise RuntimeError("cannot pin a tensor that is on a GPU")
            return self.pin(args[0].clone(), "copy")
        if func is T.is_pinned:
            return not shadows and self.is_pinned(args[0])
        if func is T.__repr__ and shadows:
            return f"{args[0].on_cpu!r} on {args[0].place}"
        if func in (T.numpy, T.__array__) and shadows:
            raise TypeError(f"can't convert {args[0].device} device type tensor to numpy.")
        if func in _READS and shadows:
            self.wait(func.__name__.strip("_"))
            return func(args[0].on_cpu, *args[1:], **options)
        if func is T.copy_ and len({isinstance(x, ShadowTensor) for x in args[:2]}) == 2:
            return self._copy_between(*args, **options)
        if func == _SET_DATA and len(shadows) == 1 and args[1] is shadows[0]:
            # A parameter of the CPU moves to the device of its new data
            moved = torch.nn.Parameter(args[1].detach(), args[0].requires_grad)
            return torch.utils.swap_tensors(args[0], moved)
        if func in (T.__getitem__, T.__setitem__):
            self._check_indices(args[0], args[1])

        asked = options.get("device")
        place = numbered(asked) if asked is not None else None
        generator = options.get("generator")
        if generator is not None:
            wanted = place or (shadows[0].place if shadows else CPU)
            if getattr(generator, "place", CPU).type != wanted.type:
                raise RuntimeError(
                    f"Expected a '{wanted.type}' device type for generator but found "
                    f"'{getattr(generator, 'place', CPU).type}'"
                )
        if place is None or place.type not in ("cpu", "cuda", "mps"):
            if options.pop("pin_memory", False) and not shadows:
                return self.pin(func(*args, **options), "allocate")
            return func(*args, **options)

        # A tensor is made on the device that is asked for, such as by zeros and zeros_like
        if func is torch.tensor and shadows:
            self.wait("item")
            args = tree_map_only(ShadowTensor, lambda x: x.on_cpu, args)
        options["device"] = CPU
        is_pinned = options.pop("pin_memory", False)
        made = func(*args, **options)
        if place.type != "cpu":
            self._require(place)
            if tensors or func in (torch.tensor, torch.as_tensor, torch.asarray):
                for x in tree_leaves(made):
                    if not shadows:
                        self.copy_to_device(x, beside=False)
            values = tree_map_only(ShadowTensor, lambda x: x.on_cpu, made)
            made = tree_map_only(torch.Tensor, lambda x: ShadowTensor(x, place), values)
            self.allocate(made)
            return made
        made = tree_map_only(ShadowTensor, lambda x: x.on_cpu, made)
        return self.pin(made, "allocate") if is_pinned else made

    def _require(self, place: torch.device) -> None:
        if place.type == "cuda" and place.index >= self.gpus:
            raise RuntimeError("CUDA error: invalid device ordinal")

    def _check_indices(self, target: torch.Tensor, index: Any) -> None:
        for x in tree_leaves(index):
            if not isinstance(x, torch.Tensor) or not x.dim():
                continue
            if isinstance(x, ShadowTensor) and not isinstance(target, ShadowTensor):
                raise RuntimeError("indices should be on the same device as the indexed tensor")
            if isinstance(target, ShadowTensor) and not isinstance(x, ShadowTensor):
                self.copy_to_device(x, beside=False)
                self.wait("index on the CPU")

    def _copy_between(
        self, target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False
    ) -> torch.Tensor:
        """Copy values into a tensor, from the device or to it."""
        with torch._C.DisableTorchFunction():
            if isinstance(source, ShadowTensor):
                self.copy_to_host(source.on_cpu, target, beside=non_blocking)
                return target
            self.copy_to_device(source, beside=non_blocking)
            assert isinstance(target, ShadowTensor)
            with torch.no_grad():
                target.on_cpu.copy_(source)
            return target

    def _move(self, func: Any, source: torch.Tensor, *args: Any, **options: Any) -> Any:
        """Run `Tensor.to`, `cpu` or `cuda`."""
        wants: dict[str, Any] = {"device": {T.cpu: "cpu", T.cuda: "cuda"}.get(func)}
        flags = iter(("non_blocking", "copy"))
        for argument in args:
            if isinstance(argument, torch.Tensor):
                wants |= {"device": argument.device, "dtype": argument.dtype}
            elif isinstance(argument, torch.dtype):
                wants["dtype"] = argument
            elif isinstance(argument, bool):
                wants[next(flags)] = argument
            elif argument is not None:
                wants["device"] = argument
        wants |= options
        place = numbered(wants.pop("device", None) or source.device)
        dtype = wants.pop("dtype", None) or source.dtype
        beside = wants.pop("non_blocking", False)
        wants.pop("copy", None) if place != source.device else None
        if place == source.device:
            return T.to(source, dtype=dtype, **wants)
        if place.type == "cpu":
            assert isinstance(source, ShadowTensor)
            self.note("to host", "copy", nbytes=source.nbytes, pinned=False)
            self.wait("copy to host")
            return _ToHost.apply(source, dtype)  # type: ignore[no-untyped-call]
        self._require(place)
        if isinstance(source, ShadowTensor):
            self.note("between devices", "copy", nbytes=source.nbytes)
        else:
            self.copy_to_device(source, beside=beside)
        moved = _ToDevice.apply(source, place, dtype, wants)  # type: ignore[no-untyped-call]
        self.allocate(moved)
        return moved


def _autocast(device_type: str, **options: Any) -> Any:
    return _AUTOCAST("cpu" if device_type == "cuda" else device_type, **options)


def _group_by_device(lists: Any, with_indices: bool = False) -> Any:
    """Group tensors as optimisers and clipping ask for it, by the device that they say they are
    on."""
    groups = {}
    for (device, dtype), (grouped, indices) in _GROUP_BY_DEVICE(lists, with_indices).items():
        first = next(x for one_list in grouped for x in one_list if x is not None)
        place = first.place if isinstance(first, ShadowTensor) else device
        groups[place, dtype] = grouped, indices
    return groups
