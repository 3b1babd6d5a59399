"""DomainNet, 345 classes in six styles, a style per task: clipart, infograph, painting, quickdraw, real, sketch

The order is that of S-Prompts. <base_path>/domainnet/<domain>_{train,test}.txt of lines "<domain>/<class>/<file>
<label>" and the images below <base_path>/domainnet; 409,832 training and 176,743 test images.
"""

from pathlib import Path

from datasets.utils.domain_stream import DomainStream, Part
from datasets.utils.file_streams import read_split_list
from datasets.utils.sources import Source


class DomainNet(DomainStream):
    NAME = "domainnet"
    SETTING = "domain-il"
    DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
    N_TASKS = 6
    N_CLASSES_PER_TASK = 345
    FILES = (
        Source(
            tuple(f"domainnet/{domain}{end}" for domain in DOMAINS for end in ("", "_train.txt", "_test.txt")),
            "ai.bu.edu/M3SDA (cleaned version)",
            "586,575 images",
            by_hand="fetch the six archives and the lists <domain>_train.txt and <domain>_test.txt of the cleaned "
            "version from ai.bu.edu/M3SDA into {base}/domainnet",
        ),
    )
    N_IMAGES = 586_575

    def domain(self, base: Path, name: str) -> tuple[Part, Part]:
        return self.part(base, f"{name}_train.txt"), self.part(base, f"{name}_test.txt")

    def part(self, base: Path, name: str) -> Part:
        source = base / "domainnet" / name
        rows = [(path, -1 if label is None else label) for path, label in read_split_list(self.lines(source))]
        found = self.files(base / "domainnet", rows, source)
        return list(zip(found.paths, found.targets.tolist(), strict=True))

    def names(self, base: Path) -> list[str]:
        rows = read_split_list(self.lines(base / "domainnet" / f"{self.DOMAINS[0]}_train.txt"))
        return [name.replace("_", " ") for _, name in sorted({(label, path.split("/")[-2]) for path, label in rows})]
