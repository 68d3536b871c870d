"""Tensors in small files: whole or not at all."""

import pytest
import torch

from entk_helpers import storage
from entk_helpers.storage import read_tensors, write_tensors

TENSORS = {
    "W": torch.randn(5, 40, generator=torch.Generator().manual_seed(0)),
    "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
    "state": torch.arange(9, dtype=torch.uint8),
    "number": torch.tensor(2, dtype=torch.int64),
    "none": torch.zeros(3, 0, dtype=torch.float64),
}


@pytest.fixture
def file(tmp_path):
    write_tensors(tmp_path / "file", TENSORS, {"note": "old"})
    return tmp_path / "file"


def test_what_is_written_comes_back_bit_by_bit(tmp_path):
    write_tensors(tmp_path / "deep" / "file", TENSORS, {"seed": "4", "stamp": "å b"})
    tensors, about = read_tensors(str(tmp_path / "deep" / "file"))
    assert about == {"seed": "4", "stamp": "å b"} and tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype and tensors[name].shape == value.shape
        assert tensors[name].numpy().tobytes() == value.numpy().tobytes()


def test_views_parameters_and_two_names_of_one_tensor_are_written(tmp_path):
    W = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4))
    given = {"W": W, "tied": W, "turned": W.T, "every other": W[:, ::2]}
    write_tensors(tmp_path / "file", given, {})
    tensors, about = read_tensors(tmp_path / "file")
    assert about == {} and not any(t.requires_grad for t in tensors.values())
    assert all(torch.equal(tensors[name], value) for name, value in given.items())


@pytest.mark.parametrize("broken", ["write_bytes", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_beside_it(file, monkeypatch, broken):
    before = file.read_bytes()

    def fail(path, *_):
        path.write_text("half")
        raise OSError("disk full")

    where = {"write_bytes": storage.Path, "replace": storage.os}[broken]
    monkeypatch.setattr(where, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        write_tensors(file, {"x": torch.ones(3)}, {})
    assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    tensors = {"b": torch.ones(3), "a": torch.arange(4)}
    notes = {name: name.upper() for name in ("format", "seed", "about", "step")}
    write_tensors(tmp_path / "one", tensors, notes)
    write_tensors(tmp_path / "two", dict(reversed(tensors.items())), dict(reversed(notes.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_file_is_replaced_as_a_whole_while_it_is_read(file):
    tensors, _ = read_tensors(file)
    copies = {name: value.clone() for name, value in tensors.items()}
    write_tensors(file, {"x": torch.ones(3)}, {"note": "new"})
    torch.testing.assert_close(tensors, copies, rtol=0, atol=0, equal_nan=True)
    tensors, about = read_tensors(file)
    assert tensors["x"].tolist() == [1, 1, 1] and about == {"note": "new"}
    assert file.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("size", [0, 4, 8, 200, -1])
def test_a_cut_file_is_refused(file, size):
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match="file is not a whole safetensors file"):
        read_tensors(file)


def test_text_and_pickles_are_refused_and_nothing_in_them_is_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'sprung')!r}, 'w')",))

    (tmp_path / "text").write_text("step,loss\n0,1.0\n")
    torch.save({"W": torch.ones(2), "trap": Trap()}, tmp_path / "pickle")
    (tmp_path / "longer").write_bytes(b"\x02\0\0\0\0\0\0\0{}more")
    for name in ("text", "pickle", "longer"):
        with pytest.raises(ValueError, match=f"{name} is not a whole safetensors file"):
            read_tensors(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "none")
