import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_codecs import STEP, Grid, Sparse, Tampered
from torch import Tensor

from shoestring.errors import ShoestringError
from shoestring.sync.codecs.floats import Float32
from shoestring.sync.exchange import Averaged, Delta, ExchangeTerms, average, drive
from shoestring.sync.feedback import ErrorFeedback, Residuals
from shoestring.sync.lockstep import drive_together
from shoestring.sync.message import NOTE_BYTES, BodyLayout, Holds, header_bytes, open_message, seal, write_note
from shoestring.sync.transport.local import LocalGroup, LocalTransport

FRAME_BYTES = 48
SHAPES = {"w": (5, 4), "thin": (2, 3), "stack": (3, 2, 2), "gain": (5,), "one": ()}
WAYS = ["gather", "scatter"]


def deltas_of(worker: int, round_: int = 0, shapes: dict[str, tuple[int, ...]] = SHAPES) -> list[Delta]:
    generator = torch.Generator().manual_seed(100 * round_ + worker)
    return [Delta(name, None, torch.randn(shape, generator=generator)) for name, shape in shapes.items()]


def together(
    way: Any,
    workers: list[list[Delta]],
    codec: Any,
    *,
    residuals: list[Residuals] | None = None,
    change: dict[int, Callable[[int, list[Tensor | None]], list[Tensor | None]]] | None = None,
    group: LocalGroup | None = None,
    **more: Any,
) -> list[Averaged]:
    """One exchange of all workers; change: by rank, what becomes of the messages that arrive there."""
    group = group or LocalGroup(len(workers))
    exchanges = []
    for rank, deltas in enumerate(workers):
        transport: Any = group.transports[rank]
        if change and rank in change:
            transport = Tampered(transport, change[rank])
        own = {key: value[rank] if isinstance(value, list) else value for key, value in more.items()}
        terms = ExchangeTerms(codec, transport, residuals[rank] if residuals else None, note={"rank": rank}, **own)
        exchanges.append(average(way, deltas, terms))
    return drive_together(exchanges)


def mean_of(workers: list[list[Delta]]) -> list[Tensor]:
    total = [delta.values.clone() for delta in workers[0]]
    for deltas in workers[1:]:
        for place, delta in enumerate(deltas):
            total[place] += delta.values
    return [tensor / len(workers) for tensor in total]


def equal(ours: list[Tensor] | None, theirs: list[Tensor]) -> bool:
    assert ours is not None
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("codec", [Float32(), Sparse()])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_the_mean_in_the_order_of_ranks_bit_for_bit(way: str, codec: Any, size: int) -> None:
    """With 7 workers, some own no rows of the thin matrix."""
    workers = [deltas_of(rank) for rank in range(size)]
    for rank, result in enumerate(together(way, workers, codec)):
        assert equal(result.tensors, mean_of(workers))
        assert result.notes == [{"rank": r} for r in range(size)]
        assert (result.participants, result.dropped, result.place) == (list(range(size)), [], (rank, size))


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 5),
    shapes=st.lists(st.lists(st.integers(0, 6), min_size=0, max_size=3).map(tuple), min_size=1, max_size=4),
    way=st.sampled_from(WAYS),
)
def test_any_shapes_and_any_number_of_workers(size: int, shapes: list[tuple[int, ...]], way: str) -> None:
    named = {f"p{place}": shape for place, shape in enumerate(shapes)}
    workers = [deltas_of(rank, shapes=named) for rank in range(size)]
    results = together(way, workers, Sparse(), residuals=[Residuals(ErrorFeedback()) for _ in range(size)])
    for result in results:
        assert equal(result.tensors, mean_of(workers))
        assert all(not tensor.any() for tensor in result.residuals.values())


def test_auto_gathers_among_two_and_scatters_among_more() -> None:
    def bytes_of(way: str, size: int) -> int:
        return together(way, [deltas_of(rank) for rank in range(size)], Float32())[0].sent

    assert bytes_of("auto", 2) == bytes_of("gather", 2) != bytes_of("scatter", 2)
    assert bytes_of("auto", 3) == bytes_of("scatter", 3) != bytes_of("gather", 3)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_lost_is_the_codecs_and_is_fed_back(way: str) -> None:
    """Over many rounds the sums of what arrived and of what was meant differ by the residuals alone."""
    size, rounds = 4, 12
    residuals = [Residuals(ErrorFeedback()) for _ in range(size)]
    meant = [torch.zeros(shape) for shape in SHAPES.values()]
    came = [torch.zeros(shape) for shape in SHAPES.values()]
    for round_ in range(rounds):
        workers = [deltas_of(rank, round_) for rank in range(size)]
        results = together(way, workers, Grid(), residuals=residuals)
        assert all(equal(result.tensors, results[0].tensors or []) for result in results)
        for result, own in zip(results, residuals, strict=True):
            own.commit(result.residuals, result.place)
        for place, mean in enumerate(mean_of(workers)):
            meant[place] += mean
            came[place] += (results[0].tensors or [])[place]
    assert not equal(came, meant)
    for place, name in enumerate(SHAPES):
        kept = torch.zeros(SHAPES[name])
        if len(SHAPES[name]) >= 2:
            kept = torch.stack([own.tensors[name] for own in residuals]).mean(0)
            if way == "scatter":
                parts = [own.tensors.get(f"{name}@part") for own in residuals]
                kept = kept + torch.cat([part for part in parts if part is not None])
        torch.testing.assert_close(came[place] + kept, meant[place], rtol=0, atol=1e-5)
        assert kept.abs().max() <= STEP / 2 * (2 if way == "scatter" else 1) + 1e-6


@pytest.mark.parametrize("codec", [Float32(), Grid()])
def test_bytes_are_what_the_formulas_say(codec: Any) -> None:
    size = 4
    shapes: dict[str, tuple[int, ...]] = {"w": (8, 4), "gain": (8,)}
    payload = codec.payload_bytes((8, 4)) + 4 * 8
    head, vote = 8 + NOTE_BYTES, 1
    workers = [deltas_of(rank, shapes=shapes) for rank in range(size)]
    for result in together("gather", workers, codec):
        assert result.sent == result.received == 3 * (head + payload + FRAME_BYTES + vote + FRAME_BYTES)
        assert result.sent_by_role == {
            "matrix": 3 * codec.payload_bytes((8, 4)),
            "vector": 3 * 32,
            "control": 3 * (head + vote),
        }
    for result in together("scatter", workers, codec):
        assert result.sent == 3 * (head + payload // 4 + 8 + payload // 4 + vote + 3 * FRAME_BYTES)
        assert result.sent_by_role["matrix"] == 2 * 3 * codec.payload_bytes((8, 4)) // 4
        assert sum(result.sent_by_role.values()) == result.sent - 3 * 3 * FRAME_BYTES


@pytest.mark.parametrize(("codec", "average_codec"), [(Grid(), Sparse()), (Sparse(), Grid()), (Float32(), Grid())])
def test_the_averages_may_have_a_codec_of_their_own(codec: Any, average_codec: Any) -> None:
    """Also where the size of one stage is known and that of the other is not, and among two, who would gather else."""
    for way, size in [("scatter", 4), ("auto", 2)]:
        workers = [deltas_of(rank) for rank in range(size)]

        def coded(with_: Any, tensors: list[Tensor]) -> list[Tensor]:
            grid = isinstance(with_, Grid)
            return [(x / STEP).round() * STEP if grid and x.ndim >= 2 else x for x in tensors]

        sent = [coded(codec, [delta.values for delta in deltas]) for deltas in workers]
        each = [[Delta("", None, tensor) for tensor in tensors] for tensors in sent]
        wanted = coded(average_codec, mean_of(each))
        assert not equal(wanted, mean_of(workers))
        for result in together(way, workers, codec, average_codec=average_codec):
            assert equal(result.tensors, wanted)


def test_bytes_of_a_codec_of_the_averages() -> None:
    workers = [deltas_of(rank, shapes={"w": (8, 4)}) for rank in range(4)]
    for result in together("scatter", workers, Grid(), average_codec=Float32()):
        assert result.sent_by_role["matrix"] == 3 * (Grid().payload_bytes((2, 4)) + Float32().payload_bytes((2, 4)))


def test_roles_are_the_callers() -> None:
    group = LocalGroup(2)
    workers = [[Delta("e", "embedding", torch.ones(4, 2)), Delta("g", None, torch.ones(4))] for _ in range(2)]
    together("gather", workers, Float32(), group=group)
    assert group.transports[0].traffic.sent_by_role["embedding"] == 32
    assert group.transports[0].traffic.sent_by_role["vector"] == 16


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("codec", [Float32(), Grid(), Sparse()])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_worker_with_a_value_that_is_not_finite_is_left_out_by_all(way: str, codec: Any, bad: float) -> None:
    workers = [deltas_of(rank) for rank in range(4)]
    workers[2][3].values[1] = bad
    residuals = [Residuals(ErrorFeedback()) for _ in range(4)]
    results = together(way, workers, codec, residuals=residuals)
    sound = together("gather", [workers[0], workers[1], workers[3]], Float32())[0]
    for result in results:
        assert (result.participants, result.dropped) == ([0, 1, 3], [2])
        assert result.notes[2] == {"rank": 2}
        for ours, theirs in zip(result.tensors or [], sound.tensors or [], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0 if not isinstance(codec, Grid) else 2 * STEP)
    # it still averages its own rows, and keeps the residual of that; its own delta left no trace
    assert {name for name in results[2].residuals if not name.endswith("@part")} == set()
    if codec.fixed_size:
        assert len({result.sent for result in results}) == (1 if way == "gather" else len({r.sent for r in results}))


@pytest.mark.parametrize("way", WAYS)
def test_all_left_out_is_no_round(way: str) -> None:
    workers = [deltas_of(rank) for rank in range(3)]
    for deltas in workers:
        deltas[0].values[0, 0] = math.nan
    for result in together(way, workers, Grid(), residuals=[Residuals(ErrorFeedback()) for _ in range(3)]):
        assert (result.tensors, result.participants, result.dropped) == (None, [], [0, 1, 2])
        assert result.residuals == {}


@pytest.mark.parametrize("way", WAYS)
def test_an_absent_worker_takes_part_and_adds_nothing(way: str) -> None:
    workers = [deltas_of(rank) for rank in range(3)]
    for result in together(way, workers, Float32(), absent=[False, True, False]):
        assert equal(result.tensors, mean_of([workers[0], workers[2]]))
        assert (result.participants, result.dropped) == ([0, 2], [])


def lost(rank: int, stage: int) -> Callable[[int, list[Tensor | None]], list[Tensor | None]]:
    """The message of `rank` in a stage arrives damaged."""
    return lambda number, messages: [None if number == stage and r == rank else m for r, m in enumerate(messages)]


def cut_short(rank: int, stage: int) -> Callable[[int, list[Tensor | None]], list[Tensor | None]]:
    """Payloads that cannot be decoded."""

    def change(number: int, messages: list[Tensor | None]) -> list[Tensor | None]:
        return [m[:-3] if number == stage and r == rank and m is not None else m for r, m in enumerate(messages)]

    return change


@pytest.mark.parametrize(("way", "stages"), [("gather", 1), ("scatter", 2)])
@pytest.mark.parametrize("damage", [lost, cut_short])
@pytest.mark.parametrize("codec", [Grid(), Sparse()])
def test_one_damaged_message_and_nobody_has_an_average(way: str, stages: int, damage: Any, codec: Any) -> None:
    for stage in range(stages):
        workers = [deltas_of(rank) for rank in range(3)]
        residuals = [Residuals(ErrorFeedback()) for _ in range(3)]
        results = together(way, workers, codec, residuals=residuals, change={1: damage(2, stage)})
        for rank, result in enumerate(results):
            assert result.tensors is None
            assert result.residuals == {}
            assert result.notes == [None] * 3
            assert result.damaged == ([2] if rank == 1 else [])


@pytest.mark.parametrize("way", WAYS)
def test_damage_in_the_vote_is_found_at_the_next_exchange(way: str) -> None:
    group = LocalGroup(3)
    workers = [deltas_of(rank) for rank in range(3)]
    last = 1 if way == "gather" else 2
    results = together(way, workers, Grid(), change={1: lost(0, last)}, group=group)
    applied = [int(result.tensors is not None) for result in results]
    assert applied == [1, 0, 1]
    with pytest.raises(ShoestringError, match=r"^worker 1 has applied 0 rounds and worker 0 1: their global weights"):
        together(way, workers, Grid(), group=group, generation=applied)


@pytest.mark.parametrize("way", WAYS)
def test_a_sum_that_overflows_is_voted_down(way: str) -> None:
    workers = [[Delta("w", None, torch.full((2, 2), 3e38))] for _ in range(2)]
    for result in together(way, workers, Float32()):
        assert (result.tensors, result.participants) == (None, [0, 1])


def test_flags_and_notes_that_make_no_sense_are_damage() -> None:
    def nonsense(place: int) -> Callable[[int, list[Tensor | None]], list[Tensor | None]]:
        def change(number: int, messages: list[Tensor | None]) -> list[Tensor | None]:
            if number or messages[0] is None:
                return messages
            bent = messages[0].clone()
            bent[place] = 250
            return [bent, *messages[1:]]

        return change

    workers = [deltas_of(rank) for rank in range(2)]
    for place in (0, 8):
        assert [result.tensors for result in together("gather", workers, Grid(), change={1: nonsense(place)})] == [
            None
        ] * 2
    with pytest.raises(ValueError, match="too short to have a header"):
        open_message(torch.zeros(9, dtype=torch.uint8), noted=True)
    listed = seal(Holds.TENSORS, 3, b"[1]".ljust(NOTE_BYTES), None, 0)
    with pytest.raises(ValueError, match="no table"):
        open_message(listed, noted=True)


def test_notes_have_a_size() -> None:
    assert len(write_note({"loss": 2.5})) == NOTE_BYTES == header_bytes(True) - header_bytes(False)
    with pytest.raises(ValueError, match=r"^the note takes 136 bytes, and 128 are the most"):
        write_note({"text": "x" * 125})


def test_a_codec_that_breaks_its_word_is_found_out() -> None:
    class Liar(Grid):
        def payload_bytes(self, shape: Any) -> int:
            return super().payload_bytes(shape) + 1

    with pytest.raises(ValueError, match=r"Liar made 8 bytes of \(2, 2\), and had said 9"):
        BodyLayout(Liar(), [(2, 2)]).pack([torch.ones(2, 2)])


def test_bodies_of_other_tensors_are_refused() -> None:
    body, _ = BodyLayout(Sparse(), [(2, 2), (3,)]).pack([torch.ones(2, 2), torch.ones(3)])
    cpu = torch.device("cpu")
    for shapes in ([(2, 2), (4,)], [(1, 2), (3,)], [(2, 2)], [(2, 2), (3,), (1, 1)]):
        with pytest.raises(ValueError, match=r"body|another|place|payload"):
            BodyLayout(Sparse(), shapes).unpack(body, cpu)
    negative = torch.tensor([20, -8], dtype=torch.int32).view(torch.uint8)
    with pytest.raises(ValueError, match="a body of 20 bytes"):
        BodyLayout(Sparse(), [(2, 2), (3,)]).unpack(torch.cat([negative, torch.zeros(12, dtype=torch.uint8)]), cpu)
    with pytest.raises(ValueError, match="a body of 2 bytes"):
        BodyLayout(Sparse(), [(2, 2)]).unpack(body[:2], cpu)


@pytest.mark.parametrize("way", WAYS)
def test_a_codec_may_decode_to_a_view_of_the_message(way: str) -> None:
    class View(Float32):
        def decode(self, payload: Tensor, shape: Any) -> Tensor:
            return payload.view(torch.float32).reshape(shape)

    workers = [deltas_of(rank, shapes={"w": (6, 4)}) for rank in range(3)]
    for result in together(way, workers, View()):
        assert equal(result.tensors, mean_of(workers))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("codec", "known"), [(Grid(), True), (Sparse(), False)])
def test_all_workers_know_sizes_or_none_does(way: str, codec: Any, known: bool) -> None:
    """A link may need to agree with its peers on whether sizes are exchanged first; here worker 0 owns no rows."""
    asked: list[bool] = []

    class Asked(LocalTransport):
        def exchange(self, messages: Any, sizes: Any, *, tag: int) -> Any:
            asked.append(sizes is not None)
            return super().exchange(messages, sizes, tag=tag)

    group = LocalGroup(3)
    group.transports = [Asked(group, rank) for rank in range(3)]
    together(way, [deltas_of(rank, shapes={"w": (2, 3)}) for rank in range(3)], codec, group=group)
    votes = 3
    assert asked == [known] * (len(asked) - votes) + [True] * votes


def test_drive_runs_one_worker_to_the_end() -> None:
    (alone,) = LocalGroup(1).transports
    result = drive(average("auto", deltas_of(0), ExchangeTerms(Float32(), alone)))
    assert equal(result.tensors, [delta.values for delta in deltas_of(0)])
    assert result.sent == 0
    assert result.abandoned().tensors is None
    two = LocalGroup(2).transports[0]
    with pytest.raises(ValueError, match="driven out of step"):
        drive(average("auto", deltas_of(0), ExchangeTerms(Float32(), two)))


@pytest.mark.parametrize("way", WAYS)
def test_deltas_are_left_alone(way: str) -> None:
    workers = [deltas_of(rank) for rank in range(2)]
    residuals = [Residuals(ErrorFeedback()) for _ in range(2)]
    together(way, workers, Grid(), residuals=residuals)
    for rank, deltas in enumerate(workers):
        assert equal([delta.values for delta in deltas], [delta.values for delta in deltas_of(rank)])
    assert all(own.tensors == {} for own in residuals)
