"""The trained parameters of a net in a few long arrays, for what is done to all of them alike.

A SoVITS generator trains 600 to 700 tensors. AdamW, the norms of gradients and weight norm take a
handful of operations each, whatever the size of a tensor; over one tensor at a time they are most
of the operations of a step, and on a GPU a small operation costs as much as a large one.

A block is a matrix `(R, W)`: tensors of R_i W elements each, one below the other.

* *directions*: every `weight_v` whose channels have W elements, a channel a row. Their *lengths*,
  the `weight_g` of the same channels, are a block `(R, 1)` beside it.
* *plain*: tensors of a multiple of `_ROW` elements, in rows of that many; so all begin at a
  multiple of 128 bytes.
* *loose*: the others, `(R, 1)`.

Blocks are fp32. A net may compute with them in another type: a block is cast once and then cut, and
its gradient is put together in that type and cast once. Tensors of what is exact (layer norms, what
losses read, lengths and directions that a layer multiplies out itself) stay fp32, in blocks of
their own.

The arrays that the model holds are views into the blocks. Checkpoints keep one tensor a name:
blocks are of the running program alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_vits.nn.weight_norm import WeightNormed, fold_rows, has_rows

Role = Literal["directions", "lengths", "plain", "loose"]
Arrays = list[dict[str, mx.array]]

_ROW = 32
# A block is closed at this size: what the update of one takes besides is a few times that.
_LARGEST = 4_000_000


class Slot(NamedTuple):
    """A tensor of the model.

    Attributes:
        path: in the model's tree.
        module: that holds it.
        name: under which.
        shape: its own.
    """

    path: str
    module: nn.Module
    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def is_exact(self) -> bool:
        """Whether it is fp32 whatever the net computes in."""
        is_part = self.name in ("weight_g", "weight_v")
        return getattr(self.module, "is_exact", False) or (is_part and not has_rows(self.module))


class Block:
    """Tensors that lie in one array, whose every row is a tensor's.

    Args:
        group: of the optimizer.
        name: among all blocks of a net.
        role: see above.
        width: elements of a row.
        slots: in their order.
        compute: what a net computes in with them.
    """

    def __init__(
        self,
        group: int,
        name: str,
        role: Role,
        width: int,
        slots: list[Slot],
        compute: mx.Dtype = mx.float32,
    ):
        self.group, self.name, self.role, self.width = group, name, role, width
        self.slots, self.compute = slots, compute
        self.rows = [slot.size // width for slot in slots]
        ends = list(itertools.accumulate(self.rows))
        spans = [slice(end - rows, end) for end, rows in zip(ends, self.rows, strict=True)]

        def cut(array: mx.array) -> list[mx.array]:
            pairs = zip(slots, spans, strict=True)
            return [array[span].reshape(slot.shape) for slot, span in pairs]

        def gradient(
            primal: mx.array, cotangents: Sequence[mx.array], outputs: Sequence[mx.array]
        ) -> mx.array:
            # MLX's own gradient fills and adds up a whole block for each tensor.
            return self._join(cotangents)

        function: Any = mx.custom_function(cut)
        function.vjp(gradient)
        self._cut: Callable[[mx.array], list[mx.array]] = function

    def pack(self, tensors: Mapping[str, mx.array]) -> mx.array:
        """Tensors by path to `(R, W)`."""
        return self._join([tensors[slot.path] for slot in self.slots])

    def unpack(self, array: mx.array) -> Iterator[tuple[Slot, mx.array]]:
        """`(R, W)` to views in the shapes of the tensors."""
        return zip(self.slots, self._cut(array), strict=True)

    def _join(self, tensors: Sequence[mx.array]) -> mx.array:
        return mx.concatenate([tensor.reshape(-1, self.width) for tensor in tensors])


class Packed:
    """The trained parameters of a model, as blocks.

    Args:
        model: its parameters become views into the blocks.
        apart: beginnings of the paths that form optimizer group 0; the others are the last group.
            Without any, there is one group.
        compute: what the net computes in, but for what is exact.

    Attributes:
        arrays: the blocks of each group, by name; a compiled step holds on to these dictionaries.
        blocks: what lies in them.
    """

    def __init__(
        self, model: nn.Module, apart: tuple[str, ...] = (), compute: mx.Dtype = mx.float32
    ):
        slots = list(_slots(model))
        self.blocks = _arrange(slots, apart, compute)
        self._compute = compute
        self.arrays: Arrays = [{} for _ in range(2 if apart else 1)]
        self._given: list[mx.array] = []
        self._take({slot.path: slot.module[slot.name] for slot in slots}, self.blocks)
        mx.eval(self.arrays)
        self.replace(self.arrays)

    def paths(self, group: int) -> list[str]:
        """Of the tensors of an optimizer's group."""
        blocks = (block for block in self.blocks if block.group == group)
        return [slot.path for block in blocks for slot in block.slots]

    def pack(self, tensors: Mapping[str, mx.array]) -> Arrays:
        """Tensors by path to blocks."""
        packed: Arrays = [{} for _ in self.arrays]
        for block in self.blocks:
            packed[block.group][block.name] = block.pack(tensors)
        return packed

    def unpack(self, arrays: Sequence[Mapping[str, mx.array]]) -> dict[str, mx.array]:
        """Blocks to views by path, in the order of the blocks."""
        return {
            slot.path: tensor
            for block in self.blocks
            for slot, tensor in block.unpack(arrays[block.group][block.name])
        }

    def replace(self, arrays: Sequence[Mapping[str, mx.array]]) -> None:
        """Takes new blocks, and gives the model its views into them."""
        for ours, theirs in zip(self.arrays, arrays, strict=True):
            ours.update(theirs)
        for block in self.blocks:
            for slot, view in block.unpack(self.arrays[block.group][block.name]):
                slot.module[slot.name] = view
        self.note()

    def note(self) -> None:
        """Takes the model's present arrays for views into the present blocks."""
        self._given = [slot.module[slot.name] for block in self.blocks for slot in block.slots]

    def adopt(self) -> None:
        """Takes what others have put into the model since the last `replace` or `note`."""
        held = iter(self._given)
        changed = []
        for block in self.blocks:
            given = list(itertools.islice(held, len(block.slots)))
            pairs = zip(block.slots, given, strict=True)
            if any(slot.module[slot.name] is not array for slot, array in pairs):
                changed.append(block)
        if changed:
            slots = [slot for block in changed for slot in block.slots]
            self._take({slot.path: slot.module[slot.name] for slot in slots}, changed)
            self.replace(self.arrays)

    def value_and_grad(self, function: Callable[[Arrays], mx.array]) -> tuple[mx.array, Arrays]:
        """Value and gradients of a function of the blocks, at the present ones."""
        # Copies: `mx.value_and_grad` puts what it traces into the dictionaries it is given.
        at: Any = [dict(arrays) for arrays in self.arrays]
        return mx.value_and_grad(function)(at)

    def effective(self, arrays: Sequence[Mapping[str, mx.array]]) -> dict[str, mx.array]:
        """Blocks of weights `(R, W)` by name: plain ones, and directions at their lengths."""
        found = {}
        for block in self.blocks:
            array = arrays[block.group][block.name]
            if block.role == "plain":
                found[block.name] = array
            elif block.role == "directions":
                found[block.name] = fold_rows(arrays[block.group][_lengths(block.name)], array)
        return found

    @contextmanager
    def in_use(self, arrays: Arrays, *, cast: bool = False) -> Iterator[dict[str, mx.array]]:
        """Lets the model compute with these blocks within a `with` block.

        Weight norm is applied once, to whole blocks; where it is, the model's `weight_g` and
        `weight_v` stay as they are. Gives what `effective` gives.

        Args:
            cast: whether it computes in the type that it is packed for; else in fp32.
        """
        weights = self.effective(arrays)
        before: list[tuple[Slot, mx.array]] = []
        for block in self.blocks:
            compute = block.compute if cast else mx.float32
            # The model has views into the present blocks already.
            has_views = arrays is self.arrays and block.role != "directions"
            if block.role == "lengths" or (has_views and compute == mx.float32):
                continue
            array = weights.get(block.name, arrays[block.group][block.name])
            for slot, view in block.unpack(array.astype(compute)):
                if isinstance(slot.module, WeightNormed) and block.role == "directions":
                    slot.module.hold(view)
                else:
                    before.append((slot, slot.module[slot.name]))
                    slot.module[slot.name] = view
        if cast:
            self._fold_the_rest()
        try:
            yield weights
        finally:
            for slot, array in before:
                slot.module[slot.name] = array
            for slot in (slot for block in self.blocks for slot in block.slots):
                if isinstance(slot.module, WeightNormed):
                    slot.module.hold(None)

    def _fold_the_rest(self) -> None:
        """Layers that multiply length and direction out themselves do so in fp32, then cast."""
        if self._compute == mx.float32:
            return
        for slot in (slot for block in self.blocks for slot in block.slots):
            layer = slot.module
            if isinstance(layer, WeightNormed) and slot.name == "weight_v" and not has_rows(layer):
                layer.hold(layer.weight().astype(self._compute))

    def _take(self, tensors: Mapping[str, mx.array], blocks: Iterable[Block]) -> None:
        for block in blocks:
            self.arrays[block.group][block.name] = block.pack(tensors)


def _slots(model: nn.Module) -> Iterator[Slot]:
    modules = dict(model.named_modules())
    leaves: Any = tree_flatten(model.trainable_parameters())
    for path, array in leaves:
        parent, _, name = path.rpartition(".")
        yield Slot(path, modules[parent], name, array.shape)


def _lengths(directions: str) -> str:
    return f"{directions} lengths"


def _arrange(slots: Sequence[Slot], apart: tuple[str, ...], compute: mx.Dtype) -> list[Block]:
    """Slots to blocks; tensors of one kind stay in the model's order."""
    by_path = {slot.path: slot for slot in slots}
    kinds: dict[tuple[int, Role, int, bool], list[list[Slot]]] = {}
    beside: dict[str, Slot] = {}
    for slot in slots:
        group = 1 if apart and not slot.path.startswith(apart) else 0
        stem = slot.path.removesuffix("weight_v").removesuffix("weight_g")
        length, direction = (by_path.get(f"{stem}weight_{part}") for part in "gv")
        role: Role = "plain" if slot.size % _ROW == 0 else "loose"
        width = _ROW if role == "plain" else 1
        if length is not None and direction is not None and has_rows(slot.module):
            if slot is length:
                continue
            if slot is direction:
                beside[slot.path] = length
                role, width = "directions", slot.size // slot.shape[0]
        is_cast = compute != mx.float32 and not slot.is_exact
        bins = kinds.setdefault((group, role, width, is_cast), [[]])
        if bins[-1] and sum(other.size for other in bins[-1]) + slot.size > _LARGEST:
            bins.append([])
        bins[-1].append(slot)
    blocks: list[Block] = []
    for (group, role, width, is_cast), bins in kinds.items():
        for members in bins:
            name = f"{role} {width} {len(blocks)}"
            dtype = compute if is_cast else mx.float32
            blocks.append(Block(group, name, role, width, members, dtype))
            if role == "directions":
                lengths = [beside[slot.path] for slot in members]
                blocks.append(Block(group, _lengths(name), "lengths", 1, lengths))
    return blocks
