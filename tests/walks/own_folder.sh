#!/usr/bin/env bash
# A researcher with a folder of transparent symbols of two vendors, and lists with captions, domains and questions.
source "$(dirname "$0")/common.sh"
own="$place/symbols"
small=(--image_size 48 --clip_backbone tiny --seed 1)
"$python" -m tests.fabricate_own "$own"
printf 'an emoji of a {}.\n' >"$place/templates.txt"
printf 'red_heart heart\nblue_star star\ngreen_leaf leaf\ngrinning_face face\n' >"$place/names.txt"
run ncm seq-folder --folder_path "$own" --n_tasks 2 "${small[@]}" --templates "$place/templates.txt" --class_names "$place/names.txt"
says "48 of 48 images are transparent: laid on white"
says "ncm on seq-folder: class-il, 2 tasks of 2 classes"
run sgd seq-folder --folder_path "$own/captions.csv" "${small[@]}" --lr 0.01 --n_epochs 1
says "columns that are not used: note"
run ncm seq-folder --folder_path "$own/domains.csv" "${small[@]}"
says "domain-il, 2 tasks of the same 4 classes"
run sgd seq-folder --folder_path "$own/questions.jsonl" "${small[@]}" --lr 0.01 --n_epochs 1
says "vqa, final average"
refused ncm seq-folder --folder_path "$own/captions.csv" --n_taks 2 "${small[@]}" && says "Closest: --n_tasks"
echo "no image" >"$own/red_heart/alpha_0.png"
refused ncm seq-folder --folder_path "$own" "${small[@]}" && says "1 of 48 images cannot be read"
run ncm seq-folder --folder_path "$own" "${small[@]}" --skip_broken 1
says "1 of 48 images cannot be read and are left out"
"$python" scripts/report.py "$place/runs" >"$place/said"
echo "own folder: ok"
