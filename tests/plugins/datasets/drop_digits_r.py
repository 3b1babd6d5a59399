"""Another set with another augmentation: a subclass that says only what differs."""

from torchvision import transforms

from datasets.drop_digits import DropDigits


class DropDigitsR(DropDigits):
    NAME = "drop-digits-r"
    TRANSFORM = transforms.Compose(
        [
            transforms.RandomCrop(16, padding=1),
            transforms.ToTensor(),
            transforms.Normalize(DropDigits.MEAN, DropDigits.STD),
        ]
    )
