"""`templates`: prompt templates by dataset, those of `datasets.utils.mtil_protocol`, under the names that files use."""

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
]  # the seven that CLIP's authors selected from their eighty
SAME_AS = {"cifar10": "cifar100", "cars196": "cars", "sun": "sun397", "food101": "food", "flowers102": "flowers"}


class Templates(dict):
    def __missing__(self, name: str) -> list[str]:
        plain = str(name).lower().removeprefix("seq-").replace("-", "").replace("_", "").replace("rgb", "")
        if plain in self:
            return self[plain]
        raise UserError(
            f"templates does not have a list '{name}', only {', '.join(sorted(self))}; write the list "
            "into get_prompt_templates()"
        )


def __getattr__(name: str):
    """Built on request, since the lists are above utils."""
    if name != "templates":
        raise AttributeError(f"module 'utils.prompt_templates' has no attribute '{name}'")
    from datasets.utils.mtil_protocol import DOMAINS

    lists = {key: list(domain.templates) for key, domain in DOMAINS.items()}
    lists |= {other: list(lists[own]) for other, own in SAME_AS.items()}
    globals()["templates"] = Templates(lists | {"default": PLAIN, "imagenet": IMAGENET})
    return globals()["templates"]
