"""MTIL: eleven datasets from aircraft to scenes, one per task, the dataset known at test time

The benchmark of Zheng et al., ICCV 2023, arXiv 2303.06628: after each task all eleven test sets are scored, including
those not yet trained on (Transfer, Average, Last). Besides these scores, each among the names of its own dataset, a run
reports the same three among all 1,201 names with no hint of the dataset (`xtail_*`).

Files are below --base_path where torchvision puts them. Choices: Caltech101, EuroSAT and SUN397 come without splits and
are split as in the released code (80 percent, seed 42); for SUN397 the paths are sorted first, since the released code
takes them as the file system lists them. --shots draws by --shots_seed; 5 and 16 are usual.
"""

from datasets.utils.mtil_stream import CrossDomainStream


class Mtil(CrossDomainStream):
    NAME = "mtil"
    SETTING = "class-il"
