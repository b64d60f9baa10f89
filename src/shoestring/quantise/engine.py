"""The engine of quantisation: transform, bits, solver and format, layer after layer, within a budget."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from shoestring.contract.anatomy import Matrix
from shoestring.contract.batch import Batch
from shoestring.contract.model import LanguageModule
from shoestring.errors import ShoestringError, UsageError, did_you_mean
from shoestring.quantise.allocation import BitAllocation
from shoestring.quantise.calibration import SeenInputs, seen
from shoestring.quantise.format import CodeFormat, Encoded
from shoestring.quantise.inputs import InputRounding, RoundedInputs
from shoestring.quantise.kept import read_back, written
from shoestring.quantise.parts import Bits, Over, Solver, Transform, never
from shoestring.quantise.progress import QuantiseProgress
from shoestring.quantise.quantisation import Quantisation, put, round_inputs
from shoestring.quantise.tables import quantise_tables
from shoestring.surgery.observe import Walk

log = logging.getLogger(__name__)

Limits = Callable[[Sequence[Matrix], Sequence[int]], tuple[list[list[float]], float, str, float]]
"""(matrices, widths) to (the cost of each at each width, the limit of their sum, in what, what all else takes of the target)."""


@dataclass(frozen=True)
class Recipe:
    """What is done.

    format, solver, transform, bits: the parts.
    keep: patterns of names of matrices that stay as they are.
    table_bits: of embedding and head, 4, 8 or 16; None: they stay as they are.
    limits: what may be spent on widths; None: the format's own width for all.
    activations: how what matrices read is rounded; None: not by the model.
    """

    format: CodeFormat
    solver: Solver
    transform: Transform
    bits: Bits
    keep: tuple[str, ...] = ()
    table_bits: int | None = None
    limits: Limits | None = None
    activations: InputRounding | None = None

    @property
    def reads(self) -> bool:
        """Whether any part looks at text."""
        return self.walks or (self.limits is not None and self.bits.reads)

    @property
    def walks(self) -> bool:
        """Whether any part looks at what matrices read."""
        looks = self.activations is not None and self.activations.reads
        return self.solver.reads or self.transform.reads or looks


def quantise_layers(
    model: LanguageModule,
    text: Sequence[Batch],
    recipe: Recipe,
    *,
    over: Over = never,
    hurry: Over | None = None,
    progress: QuantiseProgress | None = None,
) -> Quantisation:
    """Quantise the matrices in the layers of `model`, whose weights become the numbers that they are rounded to.

    Each layer is calibrated on what the layers before it make of the text once they are rounded. Beside the model, the second
    moments of one layer are held, the hidden states of the text, and the packed codes.

    text: may be empty where no part reads.
    over: asked before each matrix; once it says yes, the rest is rounded to the nearest.
    hurry: asked while the transform of the model and the bits are chosen; once it says yes, they make do with what they know.
    None: as `over`.
    progress: where each finished step is kept, and taken from.
    Raises: UsageError where something does not fit the model, or text is needed and missing; ShoestringError, naming the matrix,
    for a weight that has no code.
    """
    if recipe.reads and not text:
        raise UsageError("this quantisation looks at text, and none was given")
    done, hurry = Quantisation(), hurry or over
    _transform(model, text, recipe, done, hurry, progress)
    if recipe.table_bits is not None:  # first, so that layers are calibrated on what they will read
        done.tables = quantise_tables(model, recipe.table_bits)
    matrices = _chosen(model, recipe.keep, done)
    formats = _formats(model, matrices, text, recipe, done, hurry, progress)
    by_layer: dict[int, list[Matrix]] = {}
    for one in matrices:
        by_layer.setdefault(one.layer, []).append(one)
    layers = list(model.anatomy().layers)
    walk = Walk(model, text) if recipe.walks and not over() else None
    with ExitStack() as rounding:  # of what the layers that are done read, while those after them are calibrated
        for place in range(len(layers)) if walk is None else _places(walk, over):
            _layer(model, place, by_layer.get(place, []), formats, recipe, walk, done, over, progress)
            own = {one.name: done.matrices[one.name] for one in by_layer.get(place, [])}
            for hook in round_inputs(model, own):
                rounding.callback(hook.remove)
        for place in range(len(layers)):  # those that the walk did not come to
            rest = [one for one in by_layer.get(place, []) if one.name not in done.matrices]
            if rest:
                _layer(model, place, rest, formats, recipe, None, done, over, progress)
    done.matrices = {one.name: done.matrices[one.name] for one in matrices}
    encoded = {f"{name}.weight" for name in (*done.matrices, *done.tables)}
    done.changed = {name: one for name, one in done.changed.items() if name not in encoded}
    if walk is not None:
        done.spent += walk.spent
    if done.rounded:
        done.notes.append(
            f"the budget ended: {len(done.rounded)} of {len(matrices)} matrices, from {done.rounded[0]} on, "
            "are rounded to the nearest"
        )
    if plain := [name for name, one in done.matrices.items() if recipe.activations and one.inputs is None]:
        done.notes.append(
            f"{len(plain)} matrices, {plain[0]} first, read their inputs unrounded: no text was left for ranges"
        )
    model.changed()
    return done


def _places(walk: Walk, over: Over) -> Iterator[int]:
    """The numbers of the layers of a walk, while there is a budget: what goes on to the next is a pass."""
    for place, _ in enumerate(walk):
        yield place
        if over():
            return


def _transform(
    model: LanguageModule,
    text: Sequence[Batch],
    recipe: Recipe,
    done: Quantisation,
    over: Over,
    progress: QuantiseProgress | None,
) -> None:
    """Have the transform of the model applied."""
    kept = progress.read("transform") if progress else None
    if kept is None:
        changed = recipe.transform.of_model(model, text, recipe.format, over)
        done.changed, done.notes, done.spent = dict(changed.tensors), list(changed.notes), done.spent + changed.spent
        if progress:
            progress.write("transform", {"notes": done.notes}, done.changed)
    else:
        done.changed, done.notes = kept[1], list(kept[0].get("notes", ()))
    put(model, done.changed)


def _chosen(model: LanguageModule, keep: Sequence[str], done: Quantisation) -> list[Matrix]:
    """The matrices that are quantised."""
    every = list(model.anatomy().matrices())
    if not every:
        raise UsageError("this model has no plain matrices in its layers: is it quantised already?")
    for pattern in keep:
        if not any(fnmatchcase(one.name, pattern) for one in every):
            raise UsageError(
                f"keep = '{pattern}' names no matrix: {did_you_mean(pattern, [one.name for one in every])}"
            )
    done.kept = [one.name for one in every if any(fnmatchcase(one.name, pattern) for pattern in keep)]
    found = [one for one in every if one.name not in set(done.kept)]
    if not found:
        raise UsageError("keep leaves no matrix to quantise")
    return found


def _formats(
    model: LanguageModule,
    matrices: Sequence[Matrix],
    text: Sequence[Batch],
    recipe: Recipe,
    done: Quantisation,
    over: Over,
    progress: QuantiseProgress | None,
) -> dict[str, CodeFormat]:
    """The format of each matrix."""
    if recipe.limits is None:
        return {one.name: recipe.format for one in matrices}
    widths = recipe.format.widths
    if not widths:
        recipe.format.at(0)  # says why not
    kept = progress.read("bits") if progress else None
    if kept is not None:
        chosen = [int(bits) for bits in kept[0]["bits"]]
    else:
        costs, limit, unit, fixed = recipe.limits(matrices, widths)
        problem = BitAllocation(model, matrices, recipe.format, widths, costs, limit, unit, text, over, fixed)
        chosen = recipe.bits.choose(problem)
        if not problem.fits(chosen):
            raise ShoestringError(f"the bits that were chosen cost {problem.cost(chosen):,.6g} {unit}, of {limit:,.6g}")
        done.spent += problem.spent
        if progress:
            progress.write("bits", {"bits": chosen}, {})
    return {one.name: recipe.format.at(bits) for one, bits in zip(matrices, chosen, strict=True)}


@torch.no_grad()
def _layer(
    model: LanguageModule,
    place: int,
    matrices: Sequence[Matrix],
    formats: Mapping[str, CodeFormat],
    recipe: Recipe,
    walk: Walk | None,
    done: Quantisation,
    over: Over,
    progress: QuantiseProgress | None,
) -> None:
    """Encode the matrices of a layer, and have the model compute with them."""
    step = f"layer-{place:05d}"
    kept = progress.read(step) if progress else None
    if kept is not None:
        found, rounded = read_back(kept[0]["matrices"], kept[1]), list[str]()
    else:
        found, rounded = {}, list[str]()
        known = seen(model, walk, [one.name for one in matrices]) if walk is not None and not over() else {}
        for one in matrices:
            late = recipe.walks and (over() or walk is None)
            try:
                found[one.name] = _encoded(
                    one, formats[one.name], recipe, None if late else known.get(one.name), late, over
                )
            except (ShoestringError, UsageError) as error:
                raise type(error)(f"{one.name}: {error}") from None
            if late:
                rounded.append(one.name)
        if progress and not rounded:  # with more time, another go makes these better
            values, tensors = written(found)
            progress.write(step, {"matrices": values}, tensors)
        log.info("layer %d: %d matrices, %d bytes", place, len(found), sum(one.nbytes for one in found.values()))
    for one in matrices:
        one.weight.copy_(found[one.name].dequantise())
    done.matrices |= found
    done.rounded += rounded


def _encoded(
    one: Matrix, form: CodeFormat, recipe: Recipe, known: SeenInputs | None, late: bool, over: Over
) -> Encoded:
    weight = one.weight.detach().cpu().float()
    if late:
        return _with_inputs(form.encode(weight), recipe, known)
    if not bool(weight.isfinite().all()):
        raise ShoestringError("a weight is NaN or infinite: it has no code")
    hessian = None if known is None else known.moments
    pair = recipe.transform.of_matrix(weight, hessian, form, over)
    if pair is None:
        return _with_inputs(recipe.solver(weight, form, hessian), recipe, known)
    made = recipe.solver(pair.of_weight(weight), form, None if hessian is None else pair.of_hessian(hessian))
    return _with_inputs(replace(made, pair=pair), recipe, known)


def _with_inputs(made: Encoded, recipe: Recipe, known: SeenInputs | None) -> Encoded:
    """The matrix with how its inputs are rounded. One that must look at text, and cannot, has them as they come."""
    rounding = recipe.activations
    if rounding is None or (rounding.reads and known is None):
        return made
    parameters: dict[str, Tensor] = {}
    if rounding.reads and known is not None:
        parameters = rounding.settle(known.some if made.pair is None else made.pair.times(known.some))
    return replace(made, inputs=RoundedInputs(rounding, parameters))
