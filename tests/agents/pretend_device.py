"""A pretended accelerator: finds CUDA faults on a machine that has no GPU.

    with Pretending() as watch:  # inside, device="pretend" (or "pretend:1") works
        ...                      # RuntimeError where CUDA has one: mixed devices, a CPU generator
    print(watch.report())        # transfers, synchronising calls, draws from global generators, by line

A tensor "on" the device wraps a CPU tensor; PyTorch sees a device of another kind (PrivateUse1). Every operation is
checked, then done on the CPU. It finds nothing about numerics, kernels, memory, speed, collectives, or code that says
"cuda" by name. On CUDA every transfer without non_blocking=True waits for the stream too. Outside of the context
PyTorch reports no accelerator, so other tests of the same process see none. torch >= 2.9.
"""

import sys
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _DummyPrivateUse1Hook,
    _setup_privateuseone_for_python_backend,
)

WATCH: list["Pretending"] = []


class _Backend(_DummyBackendModule):
    """What `torch.pretend` says."""

    def is_available(self):
        return bool(WATCH)

    def device_count(self):
        return 2 if WATCH else 0

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device=0):
        return torch.random.get_rng_state()

    def set_rng_state(self, state, device=0):
        pass


class _Hook(_DummyPrivateUse1Hook):
    def is_available(self):
        return bool(WATCH)


_setup_privateuseone_for_python_backend("pretend", backend_module=_Backend(), hook=_Hook())

COPIES = {"copy_", "_to_copy", "copy", "_copy_from", "set_"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
SCALARS_TOO = {
    "masked_fill",
    "masked_fill_",
    "where",
    "fill_",
    "fill",
    "lerp",
    "clamp",
    "index_fill",
    "index_fill_",
    "searchsorted",
}
SYNCS = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique", "_unique2", "unique_dim", "is_nonzero",
    "unique_consecutive", "bincount", "unique_dim_consecutive", "repeat_interleave", "histc",
}  # fmt: skip
RANDOM = {
    "rand",
    "randn",
    "randint",
    "randperm",
    "multinomial",
    "bernoulli",
    "normal",
    "uniform",
    "native_dropout",
    "exponential",
    "random",
}


class Pretend(torch.Tensor):
    """`held`, said to be on `pretend:place`. What needs a real storage (safetensors, deepcopy) is given that one's."""

    @staticmethod
    def __new__(cls, inner, place=0):
        layout = inner.size(), inner.stride(), inner.storage_offset()
        device = torch.device("pretend", place)
        self = torch.Tensor._make_wrapper_subclass(cls, *layout, dtype=inner.dtype, device=device)
        self.held, self.place = inner, place
        self.data_ptr, self.storage, self.untyped_storage = inner.data_ptr, inner.storage, inner.untyped_storage
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl
    __torch_dispatch__ = classmethod(lambda cls, func, types, args=(), kwargs=None: perform(func, args, kwargs or {}))

    def numpy(self, **_):
        raise TypeError(f"can't convert pretend:{self.place} device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def tolist(self):
        return self.cpu().tolist()

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            new = self.detach().clone().requires_grad_(self.requires_grad)
            memo[id(self)] = torch.nn.Parameter(new, self.requires_grad) if getattr(self, "_is_param", False) else new
        return memo[id(self)]

    def __repr__(self, **_):
        return f"Pretend({self.place}, {self.held!r})"


def perform(func, args, kwargs):
    """One operation of aten: checked as CUDA checks it, counted, done on the CPU."""
    flat, _ = tree_flatten((args, kwargs))
    name, wanted = func._schema.name.removeprefix("aten::"), kwargs.get("device")
    tensors, generators = (
        [each for each in flat if isinstance(each, kind)] for kind in (torch.Tensor, torch.Generator)
    )
    places, inner = [getattr(each, "place", -1) for each in tensors], [getattr(each, "held", each) for each in tensors]
    if wanted is not None:
        target, kwargs = (
            ((torch.device(wanted).index or 0) if torch.device(wanted).type == "pretend" else -1),
            kwargs | {"device": "cpu"},
        )
    else:
        target = max(places, default=-1) if not (name in COPIES or name in INDEXED) else places[0]
    if target >= 0 or max(places, default=-1) >= 0:
        _check(func, name, args, list(zip(tensors, places)), target)
    if target >= 0 and any(each.device.type == "cpu" for each in generators):
        raise RuntimeError(f"{name}: Expected a 'pretend' device type for generator but found 'cpu'")
    if name.rstrip("_").split("_like")[0] in RANDOM and not generators:
        _count("global draw on " + ("device" if target >= 0 else "cpu"), name)
    args, kwargs = tree_map(
        lambda each: getattr(each, "held", each) if isinstance(each, torch.Tensor) else each, (args, kwargs)
    )
    written = {id(own): tensor for own, tensor in zip(inner, tensors)}

    def wrapped(each):
        if id(each) in written:
            return written[id(each)]
        return Pretend(each, target) if type(each) is torch.Tensor and target >= 0 else each

    return tree_map(wrapped, func(*args, **kwargs))


def _check(func, name, args, placed, target):
    if name in COPIES:
        source = placed[-1 if name == "copy_" else 0][1]
        if source != target:
            _count("device to host" if target < 0 else "host to device" if source < 0 else "device to device", name)
        return
    if name in INDEXED:  # indices may be on the CPU, values only if they are one number
        for each in (each for each in args[1] if each is not None):
            if (place := getattr(each, "place", -1)) not in (-1, target):
                raise RuntimeError(
                    f"{name}: indices should be either on cpu or on the same device as the indexed tensor"
                )
            if target >= 0 and (place < 0 or each.dtype == torch.bool):
                _count(*(("host to device", name + " by cpu indices") if place < 0 else ("sync", name + " by a mask")))
        placed = [placed[0], *([(args[2], getattr(args[2], "place", -1))] if "put" in name else [])]
    scalars = torch.Tag.pointwise in func.tags or name in SCALARS_TOO | INDEXED or name.startswith("_foreach")
    if len({place for tensor, place in placed if not (scalars and tensor.dim() == 0 and place < 0)}) > 1:
        found = ", ".join(
            f"{'cpu' if place < 0 else f'pretend:{place}'} {tuple(tensor.shape)}" for tensor, place in placed
        )
        raise RuntimeError(f"{name}: Expected all tensors to be on the same device, but found {found}")
    if name in SYNCS:
        _count("sync", name)


def _count(kind, what):
    frame, nearest = sys._getframe(2), None
    while frame is not None and (nearest is None or "site-packages" in frame.f_code.co_filename):
        if "/torch/" not in (file := frame.f_code.co_filename) and file != __file__:
            nearest = nearest or frame
            if "site-packages" not in file:
                break
        frame = frame.f_back
    lines = [
        f"{'/'.join(each.f_code.co_filename.split('/')[-2:])}:{each.f_lineno}"
        for each in dict.fromkeys((frame, nearest))
        if each
    ]
    for watch in WATCH[-1:]:
        watch.counts[kind, what, " <- ".join(lines)] += 1


class Pretending(TorchDispatchMode):
    """`counts`: (kind, operation, line) → number, of the innermost such context; `total(kind, …)` adds up."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __enter__(self):
        WATCH.append(self)
        # torch.tensor(…, device=…) makes its tensor on the CPU, then moves it.
        torch._C._set_only_lift_cpu_tensors(True)
        # module.to keeps the identity of (tied) parameters, as on CUDA.
        torch.__future__.set_swap_module_params_on_conversion(True)
        # Backward in this thread, so that lines are known.
        self.threads = torch.autograd.set_multithreading_enabled(False)
        return super().__enter__()

    def __exit__(self, *error):
        WATCH.remove(self)
        torch._C._set_only_lift_cpu_tensors(bool(WATCH))
        torch.__future__.set_swap_module_params_on_conversion(bool(WATCH))
        self.threads.__exit__(None, None, None)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return perform(func, args, kwargs or {})

    def total(self, *kinds):
        return sum(number for (kind, *_), number in self.counts.items() if kind in kinds)

    def report(self, most=40):
        return "\n".join(
            f"{number:6d}  {kind:22s} {what:28s} {line}" for (kind, what, line), number in self.counts.most_common(most)
        )
