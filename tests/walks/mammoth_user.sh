#!/usr/bin/env bash
# A user of Mammoth: a method file of Mammoth's style, its flags and its published values.
source "$(dirname "$0")/common.sh"
run drop-replay seq-tiny --plugins tests/plugins --buffer_size 20 --lr 0.02 --noise_rate 0.2 --stop_after 1 --n_epochs 1 --nowand 1 --debug_mode 1 --backbone resnet18 --num_filters 2
says "drop-replay on seq-tiny"
"$python" main.py --model er --dataset seq-cifar10 --buffer_size 500 --model_config best --show_config >"$place/said"
says "Mammoth utils/best_args.py"
"$python" main.py --model sgd --dataset seq-cifar100 --lr 0.1 --dataset_config 5tasks --show_config >"$place/said"
says "dataset_config"
refused er seq-tiny --buffer_size 20 --lr 0.1 --nowand 0 && says "--nowand can only be 1"
refused er seq-cifar10 --buffer_size 20 --lr 0.1 && says "prepare_data.py"
printf 'x = 1\n' >"$place/nothing.py"
refused er seq-tiny --plugins "$place/nothing.py" && says "no model, dataset or backbone is recognized"
echo "mammoth user: ok"
