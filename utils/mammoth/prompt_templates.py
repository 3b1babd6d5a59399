"""`templates`: prompt templates by data set, those of `datasets.utils.mtil_protocol` under the names files use."""

from utils.errors import UserError

PLAIN = ["a photo of a {}."]
IMAGENET = [
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
]  # the seven that CLIP's authors found to do for their eighty
SAME_AS = {"cifar10": "cifar100", "cars196": "cars", "sun": "sun397", "food101": "food", "flowers102": "flowers"}


class Templates(dict):
    def __missing__(self, name: str) -> list[str]:
        plain = str(name).lower().removeprefix("seq-").replace("-", "").replace("_", "").replace("rgb", "")
        if plain in self:
            return self[plain]
        raise UserError(
            f"templates has no list '{name}', only {', '.join(sorted(self))}; write the list into get_prompt_templates()"
        )


def __getattr__(name: str):
    """Made when asked for, since the lists live above utils."""
    if name != "templates":
        raise AttributeError(f"module 'utils.prompt_templates' has no attribute '{name}'")
    from datasets.utils.mtil_protocol import DOMAINS

    lists = {key: list(domain.templates) for key, domain in DOMAINS.items()}
    lists |= {other: list(lists[own]) for other, own in SAME_AS.items()}
    globals()["templates"] = Templates(lists | {"default": PLAIN, "imagenet": IMAGENET})
    return globals()["templates"]
