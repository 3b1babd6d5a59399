#!/usr/bin/env bash
# The paper's protocol on MM-ImageNet-R: 5, 10 and 20 phases at five samples' worth of bytes, and the memory curve at 10
# phases. Needs the images, captions and CLIP ViT-B/16; if they are missing, the error of the first run says what to
# fetch. Reported (paper, ViLT-B/32): L = 5, 10, 20: full exemplars 80.58 77.03 75.26; ExemplarMasking 82.76 80.55 78.64.
# Usage: paper_exemplar_masking.sh [seeds, default "1993"]; other flags for every run in FLAGS.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
results=${CLAIMS_PATH:-runs/paper_exemplar_masking}
one() {
    # shellcheck disable=SC2086
    .venv/bin/python main.py --model exemplar_masking --dataset mm-imagenet-r --permute_classes 1 --clip_backbone ViT-B/16 \
        --batch_size 64 --n_epochs 20 --lr 0.001 --resume auto --results_path "$results" ${FLAGS:-} "$@"
}
for seed in ${1:-1993}; do
    for phases in 5 10 20; do
        one --seed "$seed" --phases "$phases" --notes "masked, L = $phases"
        one --seed "$seed" --phases "$phases" --exemplar_codec raw --exemplar_aug none --notes "full, L = $phases"
    done
    for worth in 1 3 7 10; do
        one --seed "$seed" --phases 10 --buffer_bytes_per_class "${worth}x" --notes "masked, ${worth}x"
        one --seed "$seed" --phases 10 --buffer_bytes_per_class "${worth}x" --exemplar_codec raw --exemplar_aug none --notes "full, ${worth}x"
    done
done
.venv/bin/python scripts/report.py "$results"
