"""X-DER without contrastive preparation: cross-entropy per group of outputs, stored logits that are kept up to date.

Boschini et al., TPAMI 2022, arXiv 2201.00766; `xder` has the formulas. Unused outputs are held below the present ones
by the margin alone; the loss of the future outputs (lambd) is left out, and with it the augmented views that it
costs.

Choices: those of xder. That this is the paper's form "with CE" is read from the name that Mammoth gives the file, whose
flags are those of the margin; the paper's text was not at hand.

No table has a row of it; on the picture world:
    python main.py --model xder-ce --dataset seq-tiny --backbone clip-visual --buffer_size 500 --lr 0.03 --alpha 0.3 \
        --beta 0.8 --permute_classes 1 --seed 1992 --picture_seed 1992
"""

from models.xder import XDer


class XDerCe(XDer):
    NAME = "xder-ce"
    CONTRAST = False
    TOY_ARGS = {"constr_eta": 0.5, "constr_margin": 1.0, "dp_weight": 0.5}
