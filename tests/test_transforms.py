"""Batch transforms against torchvision, image by image, with the same random decisions."""

import pytest
import torch
from torchvision.transforms import functional as TF
from torchvision.transforms import transforms as T

from utils.batch_transforms import BatchTransform, PerImage, apply_each, augmentation_of, compile_transform
from utils.errors import UserError
from utils.pair import Pair

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def pictures(n: int = 9, channels: int = 3, height: int = 8, width: int = 10) -> torch.Tensor:
    draw = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, channels, height, width), generator=draw).float() / 255


def numbers(n: int, k: int) -> torch.Tensor:
    return torch.rand(n, k, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("size, padding", [(8, 2), ((6, 7), 0), ((5, 10), 1)])
def test_crop_is_the_window_that_u_names(size, padding):
    x, transform = pictures(), compile_transform(T.RandomCrop(size, padding=padding))
    height, width = transform.operations[0].size
    u = numbers(len(x), transform.n_random)
    u[0], u[1] = 0.0, 1 - 2**-24  # both ends of the range
    cut = transform(x, u)
    for image, (a, b), out in zip(x, u.tolist(), cut, strict=True):
        padded = TF.pad(image, [padding])
        top, left = int(a * (padded.shape[1] - height + 1)), int(b * (padded.shape[2] - width + 1))
        assert torch.equal(out, TF.crop(padded, top, left, height, width))


def test_crop_places_are_uniform():
    """A 1 x 1 crop of a 2 x 3 image of numbers: each of the six cells equally often."""
    x = torch.arange(6.0).view(1, 1, 2, 3).expand(6000, -1, -1, -1)
    torch.manual_seed(0)
    counts = compile_transform(T.RandomCrop(1))(x).flatten().long().bincount(minlength=6)
    assert ((counts - 1000.0) ** 2 / 1000).sum() < 25.7  # 0.9999 quantile of chi-square with 5 degrees of freedom


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_flip_and_grayscale_happen_where_u_is_below_p(p):
    x = pictures()
    for step, one in (
        (T.RandomHorizontalFlip(p), TF.hflip),
        (T.RandomGrayscale(p), lambda i: TF.rgb_to_grayscale(i, 3)),
    ):
        transform = compile_transform(step)
        u = numbers(len(x), 1)
        for image, chance, out in zip(x, u[:, 0].tolist(), transform(x, u), strict=True):
            assert torch.allclose(out, one(image) if chance < p else image, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalize_and_centercrop_equal_the_functional(channels):
    x, mean, std = pictures(channels=channels), MEAN[:channels], STD[:channels]
    normalized = compile_transform(T.Normalize(mean, std))(x)
    for size in ((4, 6), (8, 10), (12, 12)):
        cropped = compile_transform(T.CenterCrop(size))(x)
        for image, one, two in zip(x, normalized, cropped, strict=True):
            assert torch.allclose(one, TF.normalize(image, mean, std), atol=1e-6)
            assert torch.equal(two, TF.center_crop(image, list(size)))


BILINEAR, BICUBIC, NEAREST = T.InterpolationMode.BILINEAR, T.InterpolationMode.BICUBIC, T.InterpolationMode.NEAREST


@pytest.mark.parametrize("mode", [BILINEAR, BICUBIC], ids=["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [6, (16, 20), 24])
def test_resize_equals_the_functional_and_the_road_through_pil(size, mode):
    x = pictures()
    smooth = torch.nn.functional.interpolate(x[:, :, :3, :3], (8, 10), mode="bilinear")
    on_floats = compile_transform(T.Resize(size, interpolation=mode))(x)
    for image, out in zip(x, on_floats, strict=True):
        assert torch.allclose(out, TF.resize(image, [size] if isinstance(size, int) else list(size), mode), atol=1e-5)
    from_bytes = T.Compose([T.Resize(size, interpolation=mode), T.ToTensor()])
    assert (compile_transform(from_bytes)(smooth) - apply_each(from_bytes, smooth)).abs().max() < 2.5 / 255
    noisy = compile_transform(from_bytes)(x)
    assert noisy.min() >= 0 and noisy.max() <= 1  # bytes cannot overshoot


def test_resize_that_differs_on_tensors_goes_through_pil():
    """PIL's nearest selects other pixels than that of tensors, so it does not have a batch form."""
    step = T.Resize(5, interpolation=NEAREST)
    assert compile_transform(T.Compose([step, T.ToTensor()])) is None
    assert compile_transform(T.Compose([T.Resize(5, antialias=False), T.ToTensor()])) is None


TRAINING = T.Compose(
    [T.RandomCrop(8, padding=2), T.RandomHorizontalFlip(), T.RandomGrayscale(0.4), T.ToTensor(), T.Normalize(MEAN, STD)]
)


def test_a_sequence_hands_each_operation_its_own_numbers():
    x, transform = pictures(), compile_transform(T.Compose([T.ToPILImage(), TRAINING]))
    u = numbers(len(x), 4)
    assert transform.n_random == 4 and not transform.deterministic
    for image, (top, left, flip, gray), out in zip(x, u.tolist(), transform(x, u), strict=True):
        image = TF.crop(TF.pad(image, [2]), int(top * 5), int(left * 7), 8, 8)
        image = TF.hflip(image) if flip < 0.5 else image
        image = TF.rgb_to_grayscale(image, 3) if gray < 0.4 else image
        assert torch.allclose(out, TF.normalize(image, MEAN, STD), atol=1e-5)


def test_permuting_the_batch_permutes_the_result():
    x, transform = pictures(), compile_transform(TRAINING)
    u, order = numbers(len(x), 4), torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    assert torch.equal(transform(x[order], u[order]), transform(x, u)[order])
    singles = torch.stack([transform(x[i], u[i : i + 1]) for i in range(len(x))])
    assert torch.allclose(singles, transform(x, u), atol=1e-6)


def test_numbers_come_from_the_global_state():
    x, transform = pictures(), compile_transform(TRAINING)
    torch.manual_seed(5)
    once = transform(x)
    torch.manual_seed(5)
    again, u = transform(x), None
    torch.manual_seed(5)
    u = torch.rand(len(x), 4)
    assert torch.equal(once, again) and torch.equal(once, transform(x, u)) and not torch.equal(once, transform(x))
    state = torch.get_rng_state()
    fixed = compile_transform(T.Compose([T.CenterCrop(4), T.ToTensor(), T.Normalize(MEAN, STD)]))
    fixed(x)
    assert fixed.deterministic and torch.equal(state, torch.get_rng_state())  # draws nothing


def test_text_of_pairs_is_left_alone():
    x, text, u = pictures(), torch.arange(18).view(9, 2), numbers(9, 4)
    out = compile_transform(TRAINING)(Pair(x, text), u)
    assert torch.equal(out.image, compile_transform(TRAINING)(x, u)) and torch.equal(out.text, text)


class ShiftedCrop(T.RandomCrop):
    """Somebody's own crop: it must run as written."""

    def forward(self, image):
        return TF.crop(image, 0, 0, *self.size)


@pytest.mark.parametrize(
    "step",
    [
        T.ColorJitter(0.2),
        T.RandomRotation(10),
        T.RandomCrop(4, padding=(1, 2)),
        T.RandomCrop(4, fill=3),
        T.RandomCrop(4, padding=1, padding_mode="reflect"),
        T.RandomCrop(20, pad_if_needed=True),
        ShiftedCrop(4),
        T.RandomResizedCrop(4),
        T.Lambda(lambda i: i),
    ],
    ids=lambda s: type(s).__name__,
)
def test_a_step_without_batch_form_makes_the_whole_go_image_by_image(step):
    whole = T.Compose([T.RandomHorizontalFlip(), step, T.ToTensor()])
    assert compile_transform(whole) is None
    road = augmentation_of(T.Compose([T.ToPILImage(), whole]))
    assert isinstance(road, PerImage)
    x = pictures(4)
    torch.manual_seed(2)
    out = road(x)
    torch.manual_seed(2)
    assert torch.equal(out, torch.stack([whole(TF.to_pil_image(image)) for image in x]))


def test_augmentation_of_finds_the_inner_transform():
    assert augmentation_of(None) is None
    found = augmentation_of(T.Compose([T.ToPILImage(), TRAINING]))
    assert isinstance(found, BatchTransform) and found.n_random == 4


def test_no_transform_changes_nothing():
    x = pictures()
    assert torch.equal(compile_transform(None)(x), x) and torch.equal(compile_transform(T.ToTensor())(x), x)
    own = compile_transform(TRAINING)
    assert compile_transform(own) is own


def test_a_crop_larger_than_the_image_is_told():
    with pytest.raises(UserError, match="crop of 20 x 20 .* 10 x 12"):
        compile_transform(T.RandomCrop(20, padding=1))(pictures())


def test_a_flat_transform_keeps_all_its_steps():
    """Compose([ToPILImage, RandomCrop, ToTensor]) is augmentation too, not only the nested form."""
    from torchvision import transforms as T

    from utils.batch_transforms import augmentation_of

    steps = [T.RandomCrop(8, padding=2), T.RandomHorizontalFlip(), T.ToTensor()]
    flat = augmentation_of(T.Compose([T.ToPILImage(), *steps]))
    nested = augmentation_of(T.Compose([T.ToPILImage(), T.Compose(steps)]))
    assert flat.n_random == nested.n_random == 3
