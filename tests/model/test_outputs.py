"""Named tensors join, part and move as one."""

from dataclasses import replace

import pytest
import torch

from segclip.model.outputs import ImageOutput, Noise


def image_output(count: int) -> ImageOutput:
    return ImageOutput(*(torch.randn(count, *shape) for shape in ((8,), (2, 8), (2, 4), (2, 4))))


def output_with_patches(count: int) -> ImageOutput:
    return replace(image_output(count), patches=torch.randn(count, 4, 8), features=torch.randn(count, 4, 6))


def noise(count: int) -> Noise:
    return Noise(torch.randn(count, 2, 9), torch.rand(count, 9), torch.randn(count, 2, 4))


def given(item: ImageOutput | Noise) -> list[str]:
    """Names of the fields that are not None."""
    return [name for name, value in vars(item).items() if value is not None]


@pytest.mark.parametrize("make", [image_output, output_with_patches, noise])
def test_split_undoes_cat(make) -> None:
    parts = [make(3), make(1), make(2)]
    whole = type(parts[0]).cat(parts)
    assert isinstance(whole, type(parts[0])) and given(whole) == given(parts[0])
    for sizes in ([3, 1, 2], 3):
        for name in given(whole):
            found = [getattr(one, name) for one in whole.split(sizes)]
            assert [len(one) for one in found] == (sizes if isinstance(sizes, list) else [3, 3])
            assert torch.equal(torch.cat(found), getattr(whole, name))
            if isinstance(sizes, list):
                assert all(torch.equal(one, getattr(part, name)) for one, part in zip(found, parts, strict=True))


@pytest.mark.parametrize("make", [image_output, output_with_patches, noise])
def test_all_of_it_moves(make) -> None:
    moved = make(2).to("meta")  # a device that every machine has
    assert given(moved) == given(make(1))
    assert {getattr(moved, name).device.type for name in given(moved)} == {"meta"}


def test_noise_whose_rows_differ_is_not_parted() -> None:
    """A masked part of the batch: the rows of one do not belong to the rows of another."""
    with pytest.raises(ValueError):
        Noise(torch.randn(4, 2, 9), torch.rand(1, 9), torch.randn(1, 2, 4)).split(2)
