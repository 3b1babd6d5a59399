"""Protocol of the cross-domain benchmarks: domains, orders, sizes, sources, sentences around class names.

Sizes, orders, and which sentence comes first: the released code of Zheng et al., ICCV 2023, arXiv 2303.06628 (MTIL), as
published in its result tables. The other sentences of a domain are the prompt sets that come with CLIP (Radford et
al. 2021, data/prompts.md of its repository). MTIL trains with the first sentence and tests with the mean over all.
"""

from dataclasses import dataclass

from datasets.utils.sources import SOURCES, Source

_MADE = (
    "a painting of {} {{}}.",
    "a sculpture of {} {{}}.",
    "a sketch of {} {{}}.",
    "a tattoo of {} {{}}.",
    "a rendition of {} {{}}.",
    "a drawing of {} {{}}.",
    "a doodle of {} {{}}.",
)
_CALTECH = [
    *(f"a photo of {article} {{}}." for article in ("a", "the")),
    *(form.format(article) for form in _MADE for article in ("a", "the")),
    *(
        f"{article} {kind} {{}}."
        for kind in ("plastic", "toy", "embroidered", "cartoon", "plushie", "origami")
        for article in ("a", "the")
    ),
    *(f"{article} {{}} in a video game." for article in ("a", "the")),
    *(f"{work} of {article} {{}}." for work in ("art", "graffiti") for article in ("a", "the")),
]
_CIFAR = [
    *(
        f"a {kind}photo of {article} {{}}."
        for kind in ("", "blurry ", "black and white ", "low contrast ", "high contrast ", "bad ", "good ")
        for article in ("a", "the")
    ),
    *(f"a photo of {article} {size} {{}}." for size in ("small", "big") for article in ("a", "the")),
]
_DTD = [
    f"a photo of {article} {{}} {kind}."
    for kind in ("texture", "pattern", "thing", "object")
    for article in ("a", "the")
]
_CARS = [
    "a photo of a {}, a type of car.",
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of my {}.",
    "i love my {}!",
    "a photo of my dirty {}.",
    "a photo of my clean {}.",
    "a photo of my new {}.",
    "a photo of my old {}.",
]

EUROSAT_NAMES = {  # folder -> name, in the order of the folders
    "AnnualCrop": "annual crop land",
    "Forest": "forest",
    "HerbaceousVegetation": "brushland or shrubland",
    "Highway": "highway or road",
    "Industrial": "industrial buildings or commercial buildings",
    "Pasture": "pasture land",
    "PermanentCrop": "permanent crop land",
    "Residential": "residential buildings or homes or apartments",
    "River": "river",
    "SeaLake": "lake or sea",
}
CALTECH_NAMES = {  # folders whose name is less specific than CLIP's list
    "Faces": "off-center face",
    "Faces_easy": "centered face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
    "airplanes": "airplane",
    "car_side": "side of a car",
    "cougar_body": "body of a cougar cat",
    "cougar_face": "face of a cougar cat",
    "crocodile_head": "head of a crocodile",
    "flamingo_head": "head of a flamingo",
    "snoopy": "snoopy (cartoon beagle)",
    "yin_yang": "yin and yang symbol",
}


@dataclass(frozen=True)
class Domain:
    """What is published about one dataset. `n_train` and `n_test` are of ZSCL's splits."""

    n_classes: int
    n_train: int
    n_test: int
    files: Source
    templates: tuple[str, ...]
    coop: tuple[str, str] | None = None  # list of the CoOp split, folder of the images that it names; None: as ZSCL
    coop_classes: int | None = None  # where the CoOp split leaves classes out

    @property
    def place(self) -> str:
        """What must exist below the base path."""
        return self.files.places[0].split("|")[0]

    @property
    def source(self) -> str:
        return self.files.host


def _typed(kind: str) -> tuple[str, ...]:
    return (f"a photo of a {{}}, a type of {kind}.",)


DOMAINS = {
    "aircraft": Domain(
        100,
        3334,
        3333,
        SOURCES["aircraft"],
        (*_typed("aircraft"), "a photo of the {}, a type of aircraft."),
    ),
    "caltech101": Domain(
        101,
        6941,
        1736,
        SOURCES["caltech101"],
        tuple(_CALTECH),
        ("caltech101/split_zhou_Caltech101.json", "caltech101/101_ObjectCategories"),
        100,
    ),
    "cifar100": Domain(100, 50_000, 10_000, SOURCES["cifar100"], tuple(_CIFAR)),
    "dtd": Domain(
        47,
        1880,
        1880,
        SOURCES["dtd"],
        tuple(_DTD),
        ("dtd/dtd/split_zhou_DescribableTextures.json", "dtd/dtd/images"),
    ),
    "eurosat": Domain(
        10,
        21_600,
        5400,
        SOURCES["eurosat"],
        (
            "a centered satellite photo of {}.",
            "a centered satellite photo of a {}.",
            "a centered satellite photo of the {}.",
        ),
        ("eurosat/split_zhou_EuroSAT.json", "eurosat/2750"),
    ),
    "flowers": Domain(
        102,
        1020,
        6149,
        SOURCES["flowers"],
        _typed("flower"),
        ("flowers-102/split_zhou_OxfordFlowers.json", "flowers-102/jpg"),
    ),
    "food": Domain(
        101,
        75_750,
        25_250,
        SOURCES["food"],
        _typed("food"),
        ("food-101/split_zhou_Food101.json", "food-101/images"),
    ),
    "mnist": Domain(10, 60_000, 10_000, SOURCES["mnist"], ('a photo of the number: "{}".',)),
    "pets": Domain(
        37,
        3680,
        3669,
        SOURCES["pets"],
        _typed("pet"),
        ("oxford-iiit-pet/split_zhou_OxfordPets.json", "oxford-iiit-pet/images"),
    ),
    "cars": Domain(
        196,
        8144,
        8041,
        SOURCES["cars"],
        tuple(_CARS),
        ("stanford_cars/split_zhou_StanfordCars.json", "stanford_cars"),
    ),
    "sun397": Domain(
        397,
        87_003,
        21_751,
        SOURCES["sun397"],
        ("a photo of a {}.", "a photo of the {}."),
        ("SUN397/split_zhou_SUN397.json", "SUN397"),
    ),
}
ORDERS = {
    "I": ("aircraft", "caltech101", "cifar100", "dtd", "eurosat", "flowers", "food", "mnist", "pets", "cars", "sun397"),
    "II": (
        "cars",
        "food",
        "mnist",
        "pets",
        "flowers",
        "sun397",
        "aircraft",
        "caltech101",
        "dtd",
        "eurosat",
        "cifar100",
    ),
}


def files_of(domains: tuple[str, ...], split: str) -> tuple[Source, ...]:
    """What is read of these domains: images, and with `coop` the lists of Zhou et al."""
    lists = tuple(DOMAINS[d].coop[0] for d in domains if split == "coop" and DOMAINS[d].coop)
    where = "DATASETS.md of github.com/KaiyangZhou/CoOp"
    hand = f"put the lists linked in {where} as {', '.join(f'{{base}}/{name}' for name in lists)}"
    found = tuple(DOMAINS[d].files for d in domains)
    return (*found, Source(lists, where, f"{len(lists)} lists", by_hand=hand)) if lists else found
