"""The trained parameters of a net in a few long arrays, for what is done to all of them alike.

A SoVITS generator trains 600 to 700 tensors. AdamW, the norms of gradients and weight norm take a
handful of operations each, whatever the size of a tensor; over one tensor at a time they are most
of the operations of a step, and on a GPU a small operation costs as much as a large one.

A block is one array: one matrix `(R, W)`, or several laid end to end as `(N, 1)`. In a matrix,
tensors of R_i W elements each lie one below the other.

* *directions*: every `weight_v` whose channels have W elements, a channel a row. Of widths with few
  elements, several matrices share a block.
* *lengths*: every `weight_g`, `(R, 1)`, in the order of the rows of all directions.
* *plain*: tensors of a multiple of `_ROW` elements, in rows of that many; so all begin at a
  multiple of 128 bytes.
* *loose*: the others, `(R, 1)`.

Blocks are fp32. A net may compute with them in another type: a block is cast once and then cut, and
its gradient is put together in that type and cast once. Tensors of what is exact (layer norms, what
losses read) stay fp32, in blocks of their own. Weight norm is applied in fp32.

The arrays that the model holds are views into the blocks. Checkpoints keep one tensor a name:
blocks are of the running program alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_vits.nn.gradients import no_gradient, with_gradient
from mlx_vits.nn.joining import cast_together, end_to_end
from mlx_vits.nn.layers import Convolution
from mlx_vits.nn.viewing import view
from mlx_vits.nn.weight_norm import Back, WeightNormed, fold_rows, fold_rows_and_back

Role = Literal["directions", "lengths", "plain", "loose"]
Arrays = list[dict[str, mx.array]]
Fold = Callable[[mx.array, Sequence[mx.array]], list[mx.array]]

_ROW = 32
# A block is closed at this size: what the update of one takes besides is a few times that.
_LARGEST = 8_000_000
_SMALL = 1_000_000  # directions of fewer elements share a block


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
        return getattr(self.module, "is_exact", False)

    @property
    def is_turned(self) -> bool:
        """Whether its channels are along its last axis, and its first axis comes last in a row."""
        module = self.module
        is_direction = isinstance(module, WeightNormed) and self.name == "weight_v"
        return is_direction and module.kind == "conv_transpose1d"

    def turned(self, tensor: mx.array) -> mx.array:
        """With its axes in the order of its rows."""
        return tensor.swapaxes(0, 2) if self.is_turned else tensor

    def view(self, flat: mx.array, start: int, in_form: bool = False) -> mx.array:
        """The tensor whose rows begin at an element of `(N,)`.

        Args:
            in_form: in the shape that its module computes with it in, which may be another one.
        """
        if self.is_turned:
            return view(flat, start, self.shape[::-1]).swapaxes(0, 2)
        shape, module = self.shape, self.module
        if in_form and isinstance(module, Convolution):
            shape = module.form(self.name, shape)
        return view(flat, start, shape)


class Matrix:
    """Tensors one below the other.

    Args:
        slots: in their order.
        width: elements of a row.
    """

    def __init__(self, slots: Sequence[Slot], width: int):
        self.slots, self.width = slots, width
        self.rows = [slot.size // width for slot in slots]
        self.shape = (sum(self.rows), width)
        self._cut = with_gradient(
            lambda array: list(self.views(array, in_form=True)),
            lambda _, cotangents, __: self.join(cotangents),
        )

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    def pack(self, tensors: Mapping[str, mx.array]) -> mx.array:
        """Tensors by path to `(R, W)`."""
        return mx.contiguous(self.join([tensors[slot.path] for slot in self.slots]))

    def unpack(self, array: mx.array) -> Iterator[tuple[Slot, mx.array]]:
        """`(R, W)` to what the modules compute with, through which a gradient passes."""
        return zip(self.slots, self._cut(array), strict=True)

    def views(
        self, array: mx.array, start: int = 0, *, in_form: bool = False
    ) -> Iterator[mx.array]:
        """The tensors of an array in which the matrix begins at an element; see `Slot.view`."""
        flat = array.flatten()
        for slot in self.slots:
            yield slot.view(flat, start, in_form)
            start += slot.size

    def join(self, tensors: Sequence[mx.array]) -> mx.array:
        """The inverse of `unpack`: tensors in the order of the slots to `(R, W)`."""
        pairs = zip(self.slots, tensors, strict=True)
        return end_to_end([slot.turned(tensor) for slot, tensor in pairs], self.shape)


class Block:
    """Matrices that lie in one array.

    Args:
        group: of the optimizer.
        name: among all blocks of a net.
        role: see above.
        matrices: in their order.
        compute: what a net computes in with them.
    """

    def __init__(
        self,
        group: int,
        name: str,
        role: Role,
        matrices: Sequence[Matrix],
        compute: mx.Dtype = mx.float32,
    ):
        self.group, self.name, self.role = group, name, role
        self.matrices, self.compute = matrices, compute
        self._starts = [0, *itertools.accumulate(matrix.size for matrix in matrices[:-1])]
        self._cut = with_gradient(self._pieces, lambda _, cotangents, __: self.join(cotangents))

    @property
    def slots(self) -> list[Slot]:
        """Of all matrices, in their order."""
        return [slot for matrix in self.matrices for slot in matrix.slots]

    def pack(self, tensors: Mapping[str, mx.array]) -> mx.array:
        """Tensors by path to the block's array."""
        return self.join([matrix.pack(tensors) for matrix in self.matrices])

    def split(self, array: mx.array) -> list[mx.array]:
        """The block's array to its matrices, through which a gradient passes."""
        return [array] if len(self.matrices) == 1 else list(self._cut(array))

    def unpack(self, array: mx.array) -> Iterator[tuple[Slot, mx.array]]:
        """The block's array to views in the shapes of the tensors; no gradient is asked for."""
        for matrix, start in zip(self.matrices, self._starts, strict=True):
            yield from zip(matrix.slots, matrix.views(array, start), strict=True)

    def join(self, matrices: Sequence[mx.array]) -> mx.array:
        """The inverse of `split`."""
        if len(matrices) == 1:
            return matrices[0]
        return end_to_end(matrices, (sum(matrix.size for matrix in matrices), 1))

    def _pieces(self, array: mx.array) -> list[mx.array]:
        flat, pairs = array.flatten(), zip(self.matrices, self._starts, strict=True)
        return [view(flat, start, matrix.shape) for matrix, start in pairs]


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
            for slot, tensor in block.unpack(mx.contiguous(arrays[block.group][block.name]))
        }

    def replace(self, arrays: Sequence[Mapping[str, mx.array]]) -> None:
        """Takes new blocks, and gives the model its views into them."""
        for ours, theirs in zip(self.arrays, arrays, strict=True):
            ours.update(theirs)
        self.show()

    def show(self) -> None:
        """Gives the model its views into the present blocks, in place of those into older ones."""
        for block in self.blocks:
            for slot, tensor in block.unpack(self.arrays[block.group][block.name]):
                slot.module[slot.name] = tensor
        self.note()

    def note(self) -> None:
        """Takes the model's present arrays for views into the present blocks."""
        self._given = [slot.module[slot.name] for block in self.blocks for slot in block.slots]

    def adopt(self) -> None:
        """Takes what others have put into the model since the last `show` or `note`."""
        given = iter(self._given)
        changed = []
        for block in self.blocks:
            present = [slot.module[slot.name] for slot in block.slots]
            is_given = [array is next(given) for array in present]
            if not all(is_given):
                ours = block.unpack(self.arrays[block.group][block.name])
                of_each = zip(present, is_given, ours, strict=True)
                found = {slot.path: own if ok else array for array, ok, (slot, own) in of_each}
                changed.append((block, found))
        for block, found in changed:
            self._take(found, [block])
        if changed:
            self.show()

    def value_and_grad_in_use(
        self, function: Callable[[], mx.array], *, cast: bool = False
    ) -> tuple[mx.array, Arrays]:
        """Value and gradients of a function that calls the model, at the present blocks.

        As `value_and_grad` of the function with the blocks `in_use`, but what is differentiated
        begins at the tensors. The cut of a block would else be one operation with hundreds of
        outputs, all of which MLX visits whenever it schedules a use of one.

        Args:
            function: to a scalar.
            cast: see `in_use`.
        """
        backs: list[Back] = []

        def fold(lengths: mx.array, directions: Sequence[mx.array]) -> list[mx.array]:
            folded, back = fold_rows_and_back(lengths, directions)
            backs.append(back)
            return folded

        with no_gradient():
            places = list(self._places(self.arrays, cast, fold))

        def of_tensors(tensors: list[mx.array]) -> mx.array:
            pairs = zip(places, tensors, strict=True)
            with _held([(block, slot, tensor) for (block, slot, _), tensor in pairs]):
                return function()

        value, gradients = mx.value_and_grad(of_tensors)([tensor for _, _, tensor in places])
        with no_gradient():
            return value, self._gathered(gradients, cast, backs)

    def value_and_grad(self, function: Callable[[Arrays], mx.array]) -> tuple[mx.array, Arrays]:
        """Value and gradients of a function of the blocks, at the present ones."""
        # Copies: `mx.value_and_grad` puts what it traces into the dictionaries it is given.
        at: Any = [dict(arrays) for arrays in self.arrays]
        return mx.value_and_grad(function)(at)

    def effective(
        self, arrays: Sequence[Mapping[str, mx.array]], fold: Fold = fold_rows
    ) -> dict[str, list[mx.array]]:
        """Matrices of weights by the name of the block: plain, loose, directions at their lengths.

        Args:
            arrays: blocks.
            fold: puts lengths and directions together, once for a group that has them.
        """
        found: dict[str, list[mx.array]] = {}
        for group, given in enumerate(arrays):
            parts = {
                block.name: block.split(given[block.name])
                for block in self._weights()
                if block.group == group
            }
            for lengths, names in self._normed(group):
                folded = iter(fold(given[lengths], [m for name in names for m in parts[name]]))
                parts |= {name: list(itertools.islice(folded, len(parts[name]))) for name in names}
            found |= parts
        return found

    @contextmanager
    def in_use(self, arrays: Arrays, *, cast: bool = False) -> Iterator[None]:
        """Lets the model compute with these blocks within a `with` block.

        Weight norm is applied once, to whole blocks; where it is, the model's `weight_g` and
        `weight_v` stay as they are. No gradient passes to the present blocks, `self.arrays`.

        Args:
            cast: whether it computes in the type that it is packed for; else in fp32.
        """
        with no_gradient(arrays is self.arrays):
            places = list(self._places(arrays, cast, fold_rows))
        with _held(places):
            yield

    def _weights(self) -> list[Block]:
        return [block for block in self.blocks if block.role != "lengths"]

    def _normed(self, group: int) -> Iterator[tuple[str, list[str]]]:
        """The block of lengths of a group that has one, and those of its directions."""
        blocks = [block for block in self.blocks if block.group == group]
        for lengths in (block.name for block in blocks if block.role == "lengths"):
            yield lengths, [block.name for block in blocks if block.role == "directions"]

    def _places(
        self, arrays: Arrays, cast: bool, fold: Fold
    ) -> Iterator[tuple[Block, Slot, mx.array]]:
        """What the model computes with, each a view."""
        weights = self.effective(arrays, fold)
        if cast:
            self._cast(weights, self._compute)
        for block in self._weights():
            for matrix, array in zip(block.matrices, weights[block.name], strict=True):
                yield from ((block, slot, tensor) for slot, tensor in matrix.unpack(array))

    def _cast(self, weights: dict[str, list[mx.array]], dtype: mx.Dtype) -> None:
        """Casts the matrices of the blocks that are not computed with in fp32."""
        blocks = [block for block in self._weights() if block.compute != mx.float32]
        together = [matrix for block in blocks for matrix in weights[block.name]]
        found = iter(cast_together(together, dtype))
        for block in blocks:
            weights[block.name] = list(itertools.islice(found, len(block.matrices)))

    def _gathered(self, gradients: Iterable[mx.array], cast: bool, backs: Iterable[Back]) -> Arrays:
        """Gradients in what the model computed with to gradients in the blocks."""
        tensors, of_groups = iter(gradients), iter(backs)
        found = {
            block.name: [
                matrix.join(list(itertools.islice(tensors, len(matrix.slots))))
                for matrix in block.matrices
            ]
            for block in self._weights()
        }
        if cast:
            self._cast(found, mx.float32)
        for group in range(len(self.arrays)):
            for lengths, names in self._normed(group):
                counts = [len(found[name]) for name in names]
                parts = iter(next(of_groups)([m for name in names for m in found[name]]))
                found[lengths] = [next(parts)]
                for name, count in zip(names, counts, strict=True):
                    found[name] = list(itertools.islice(parts, count))
        packed: Arrays = [{} for _ in self.arrays]
        for block in self.blocks:
            packed[block.group][block.name] = block.join(found[block.name])
        return packed

    def _take(self, tensors: Mapping[str, mx.array], blocks: Iterable[Block]) -> None:
        for block in blocks:
            self.arrays[block.group][block.name] = block.pack(tensors)


@contextmanager
def _held(places: Sequence[tuple[Block, Slot, mx.array]]) -> Iterator[None]:
    """Has the model hold these arrays within a `with` block."""
    before: list[tuple[Slot, mx.array]] = []
    normed: list[WeightNormed] = []
    for block, slot, array in places:
        if block.role == "directions" and isinstance(slot.module, WeightNormed):
            slot.module.hold(array)
            normed.append(slot.module)
        else:
            before.append((slot, slot.module[slot.name]))
            slot.module[slot.name] = array
    try:
        yield
    finally:
        for slot, array in before:
            slot.module[slot.name] = array
        for module in normed:
            module.hold(None)


def _slots(model: nn.Module) -> Iterator[Slot]:
    modules = dict(model.named_modules())
    leaves: Any = tree_flatten(model.trainable_parameters())
    for path, array in leaves:
        parent, _, name = path.rpartition(".")
        yield Slot(path, modules[parent], name, array.shape)


def _arrange(slots: Sequence[Slot], apart: tuple[str, ...], compute: mx.Dtype) -> list[Block]:
    """Slots to blocks; tensors of one kind stay in the model's order."""
    kinds: dict[tuple[int, Role, int, bool], list[Slot]] = {}
    lengths: dict[str, Slot] = {}
    for slot in slots:
        if isinstance(slot.module, WeightNormed) and slot.name == "weight_g":
            lengths[slot.path] = slot
            continue
        group = 1 if apart and not slot.path.startswith(apart) else 0
        role: Role = "plain" if slot.size % _ROW == 0 else "loose"
        width = _ROW if role == "plain" else 1
        if isinstance(slot.module, WeightNormed) and slot.name == "weight_v":
            role, width = "directions", slot.size // slot.module.weight_g.size
        is_cast = compute != mx.float32 and not slot.is_exact
        kinds.setdefault((group, role, width, is_cast), []).append(slot)
    blocks: list[Block] = []
    small: dict[tuple[int, bool], list[Matrix]] = {}
    for (group, role, width, is_cast), members in kinds.items():
        dtype = compute if is_cast else mx.float32
        for run in _runs(members):
            matrix = Matrix(run, width)
            if role == "directions" and matrix.size < _SMALL:
                small.setdefault((group, is_cast), []).append(matrix)
            else:
                blocks.append(Block(group, f"{role} {width} {len(blocks)}", role, [matrix], dtype))
    for (group, is_cast), matrices in small.items():
        dtype = compute if is_cast else mx.float32
        for few in _runs(matrices):
            blocks.append(Block(group, f"directions {len(blocks)}", "directions", few, dtype))
    return [*blocks, *_lengths_of(blocks, lengths)]


def _lengths_of(blocks: Sequence[Block], lengths: Mapping[str, Slot]) -> Iterator[Block]:
    """A block of lengths for each group that has directions, in the order of their rows."""
    groups: dict[int, list[Slot]] = {}
    for block in blocks:
        if block.role == "directions":
            paths = [slot.path.removesuffix("weight_v") + "weight_g" for slot in block.slots]
            groups.setdefault(block.group, []).extend(lengths[path] for path in paths)
    for group, slots in groups.items():
        yield Block(group, f"lengths {group}", "lengths", [Matrix(slots, 1)])


_Sized = TypeVar("_Sized", Slot, Matrix)


def _runs(things: Sequence[_Sized]) -> Iterator[list[_Sized]]:
    """Cuts a sequence where the next thing would make a block too large."""
    run: list[_Sized] = []
    for thing in things:
        if run and sum(other.size for other in run) + thing.size > _LARGEST:
            yield run
            run = []
        run.append(thing)
    yield run
