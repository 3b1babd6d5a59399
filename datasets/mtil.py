"""MTIL: eleven data sets from aircraft to scenes, one a task, the data set known at test time

The benchmark of Zheng et al., ICCV 2023, arXiv 2303.06628: after each task all eleven test sets are scored, those not
yet trained on, too (Transfer, Average, Last). Beside these scores, each among the names of its own data set, a run
reports the same three among all 1,201 names with no hint of the data set (`xtail_*`).

Files lie below --base_path where torchvision puts them. Choices: Caltech101, EuroSAT and SUN397 come without parts and
are cut as in the released code (80 percent, seed 42); for SUN397 the paths are sorted first, since the released code
takes them as the file system lists them. --shots draws by --shots_seed; 5 and 16 are usual.
"""

from datasets.utils.mtil_stream import CrossDomainStream


class Mtil(CrossDomainStream):
    NAME = "mtil"
    SETTING = "class-il"
