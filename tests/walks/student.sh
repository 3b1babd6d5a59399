#!/usr/bin/env bash
# A student: lists methods, mistypes one, trains two, looks at the page.
source "$(dirname "$0")/common.sh"
"$python" main.py --list models 'n*' >"$place/said" && says "ncm"
refused nmc seq-tiny && says "Closest: ncm"
refused sgd seq-tiny && says "--lr is missing"
run clip seq-tiny --seed 1
says "clip on seq-tiny: class-il, 10 tasks of 6 classes"
says "network: CLIP tiny"
run ncm seq-tiny --seed 1
says "class-il, final average"
run ncm seq-tiny --seed 1 --resume auto
says "already finished"
"$python" scripts/report.py "$place/runs" >"$place/said"
find "$place/runs" -maxdepth 1 -name '*.html' | grep -q . || { echo "no page"; exit 1; }
echo "student: ok"
