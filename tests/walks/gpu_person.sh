#!/usr/bin/env bash
# A person with a GPU; without one, what is said about it.
source "$(dirname "$0")/common.sh"
common=(--base_path "$place/data" --results_path "$place/runs" --non_verbose 1)
er=(--lr 0.03 --buffer_size 50 --n_epochs 1 --stop_after 1 --seed 1 --backbone resnet18 --num_filters 8)
if "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    run er seq-tiny "${er[@]}"
    says "device cuda"
    grep -q '"driver": "[0-9]' "$(record seq-tiny er)" || { echo "the record does not name the driver"; exit 1; }
    run er seq-tiny "${er[@]}" -O 2
    "$python" scripts/reproduce.py "$(record seq-tiny er)" >"$place/said"
    says "scores are equal"
else
    refused er seq-tiny "${er[@]}" --device cuda && says "--device cuda cannot be used"
    run er seq-tiny "${er[@]}" --debug_mode 1
    says "device cpu"
fi
echo "gpu person: ok"
