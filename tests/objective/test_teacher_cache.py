"""What a teacher said, kept on disk: the same loss, no teacher a second time, and damage that is told."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from shoestring.budget.ledger import MODEL
from shoestring.contract.batch import Batch
from shoestring.contract.objective import At
from shoestring.errors import ShoestringError, UsageError
from shoestring.model import Transformer
from shoestring.objective.cross_entropy import plain
from shoestring.objective.distillation import Distillation
from shoestring.objective.teacher_cache import TeacherCache, fingerprint, row_keys
from shoestring.objective.teachers import TEACHER
from tests.objective.test_every_distilling import batch, made, mean


def learning(folder: Path | None, top: int = 5, divergence: str = "forward", teacher: int = 2) -> Distillation:
    cache = "" if folder is None else str(folder)
    one = Distillation(plain, cache=cache, top=top, divergence=divergence)  # type: ignore[arg-type]
    one.learn_from(made(teacher, 24).requires_grad_(False))
    return one


def gradients(one: Distillation, student: Transformer, of: Batch) -> tuple[Tensor, list[Tensor]]:
    student.zero_grad()
    loss = one(student, of, At())
    loss.mean.backward()
    return loss.mean.detach(), [p.grad.clone() for p in student.parameters() if p.grad is not None]


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_all_tokens_kept_are_the_online_teacher(tmp_path: Path, divergence: str) -> None:
    student, of = made(1), batch(weighted=True)
    online, first = gradients(learning(None, divergence=divergence), student, of)
    kept, second = gradients(learning(tmp_path, top=30, divergence=divergence), student, of)
    torch.testing.assert_close(kept, online, atol=1e-3, rtol=1e-3)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-2)


def test_of_fewer_tokens_all_others_are_one(tmp_path: Path) -> None:
    student, of, teacher = made(1), batch(weighted=True), made(2, 24)
    p, q = (one(of.inputs.values).softmax(-1) for one in (teacher, student))

    def each(r: int, t: int) -> Tensor:
        top = p[r, t].topk(5).indices
        left = torch.cat([p[r, t, top], 1 - p[r, t, top].sum()[None]])
        right = torch.cat([q[r, t, top], 1 - q[r, t, top].sum()[None]])
        return (left * (left / right).log()).sum()

    found, _ = gradients(learning(tmp_path), student, of)
    torch.testing.assert_close(found, mean(of, each).detach(), atol=1e-3, rtol=1e-3)
    online, _ = gradients(learning(None), student, of)
    assert found < online


def test_a_row_is_asked_once_and_the_loss_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    student, of = made(1), batch()
    one = learning(tmp_path)
    first, asked = gradients(one, student, of)
    again, known = gradients(one, student, of.take(torch.tensor([2, 0, 1, 3])))
    reopened = learning(tmp_path)
    third, later = gradients(reopened, student, of)
    assert torch.equal(first, third)
    assert all(torch.equal(a, b) for a, b in zip(asked, later, strict=True))
    torch.testing.assert_close(first, again)
    assert len(known) == len(asked)
    spent = reopened(student, of, At()).spent
    assert reopened._asked is not None
    cache = reopened._asked.cache
    assert cache is not None
    assert cache.bytes_per_token == 5 * (2 + 2) + 2
    assert spent[TEACHER].flops == spent[TEACHER].read == spent[TEACHER].calls == 0
    assert spent[TEACHER].moved == of.targets.numel() * cache.bytes_per_token
    assert spent[MODEL].flops > 0
    on_disk = sum(path.stat().st_size for path in tmp_path.glob("*.rows"))
    assert on_disk == pytest.approx(of.targets.numel() * cache.bytes_per_token, abs=4 * 40)


def test_the_half_of_a_killed_writer_is_not_seen(tmp_path: Path) -> None:
    student, of = made(1), batch()
    whole, _ = gradients(learning(tmp_path), student, of)
    (path,) = tmp_path.glob("*.rows")
    path.write_bytes(path.read_bytes()[:-7])
    one = learning(tmp_path)
    assert one._asked is not None
    assert one._asked.cache is not None
    assert len(one._asked.cache) == 3
    again, _ = gradients(one, student, of)
    assert torch.equal(whole, again)
    assert len(list(tmp_path.glob("*.rows"))) == 2


@pytest.mark.parametrize("at", [0, 40, 500])
def test_damage_is_told_and_not_learnt_from(tmp_path: Path, at: int) -> None:
    student, of = made(1), batch()
    gradients(learning(tmp_path), student, of)
    (path,) = tmp_path.glob("*.rows")
    content = bytearray(path.read_bytes())
    content[at] ^= 0x41
    path.write_bytes(bytes(content))
    with pytest.raises(ShoestringError, match="is damaged at byte"):
        gradients(learning(tmp_path), student, of)


def test_words_of_another_teacher_are_refused(tmp_path: Path) -> None:
    learning(tmp_path / "kept")
    with pytest.raises(UsageError, match="of another teacher"):
        learning(tmp_path / "kept", teacher=3)
    with pytest.raises(UsageError, match="of top 5, not 6"):
        learning(tmp_path / "kept", top=6)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="something else"):
        learning(tmp_path / "mine")


def test_keys_and_fingerprints_tell_apart_what_differs(tmp_path: Path) -> None:
    of = batch().inputs
    keys = row_keys(of)
    assert len(set(keys)) == 4
    assert row_keys(of.take(torch.tensor([3]))) == [keys[3]]
    assert row_keys(of._replace(positions=torch.zeros_like(of.values)))[0] != keys[0]
    assert fingerprint(made(1)) == fingerprint(made(1)) != fingerprint(made(2))
    cache = TeacherCache(tmp_path, teacher="t", vocabulary=1 << 17, top=3, temperature=1.0)
    assert cache.bytes_per_token == 3 * (4 + 2) + 2
    assert cache.get(b"0" * 16) is None
