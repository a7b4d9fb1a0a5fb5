#!/usr/bin/env bash
# Public benchmarks of models trained on real preferences, three seeds: studies/benchmarks.sh DATA OUT [PART …]
# DATA: a folder with hh-rlhf/, webgpt_comparisons/, llamafactory/, llmbar/, rm-bench/ and rmb/ in their published formats. LLMBar and RM-Bench
# are judged whole, RMB and HH-RLHF on the fifth of prompts that training holds out; reform, beside dense, by LLMBar and HH-RLHF; activation,
# beside dense of a fifth of the preferences, by LLMBar and its natural pairs with a bias on one answer.
# PART: train, whole, fifth (dense and umm), reform (and the model that it searched), activation (and dense); all in this order if none is
# named. SEEDS="0 1" in the environment runs some. Then:
#   python scripts/results.py judged benchmarks OUT/judged '$DATA=DATA' '$OUT=OUT'
#   python scripts/results.py judged benchmarks_few OUT/judged_few '$DATA=DATA' '$OUT=OUT'
#   python scripts/results.py judged benchmarks_activation OUT/judged_activation '$DATA=DATA' '$OUT=OUT'
set -euo pipefail
data=$1 out=$2
parts=("${@:3}")
(( ${#parts[@]} )) || parts=(train whole fifth reform activation)
preferences=$data/hh-rlhf,$data/webgpt_comparisons,$data/llamafactory/dpo_en_demo.jsonl.gz
read=(model=embedded:smollm2-135m data="$preferences" split=0.2 max_length=512 read.on_bad=drop_unfit read.overlong=drop
  read.max_groups=2500 read.max_held_out=100)
tuned=(layers=top:4 head.init=normal trainer.learning_rate=1e-4 trainer.num_train_epochs=1 trainer.per_device_train_batch_size=16)
trained() {  # RECIPE FOLDER key=value…
  [[ -f $out/$2/report.json ]] || rewardproof train "$1" "$out/$2" --overwrite "${read[@]}" seed="$((1000 * seed))" "${@:3}"
}
judge() {  # MODEL FOLDER/METHOD/SEED/NAME DATA…
  local run=$out/$2 again=()
  [[ -d $run ]] && again=(--resume)
  [[ -f $run/report.json ]] || rewardproof evaluate "$out/$1" "${@:3}" --out "$run" "${again[@]}"
}
few() {  # MODEL FOLDER METHOD key=value…
  judge "$1" "$2/$3/$seed/whole" "$data/llmbar" "${@:4}"
  judge "$1" "$2/$3/$seed/fifth" "$data/hh-rlhf" split=0.2 "${@:4}"
}
policy() {  # NAME key=value…: what REFORM's failures are written by
  [[ -f $out/$1/report.json ]] || rewardproof align dpo "$out/$1" --overwrite policy=embedded:smollm2-135m prompts="$preferences" on_bad=drop \
    split=0.2 max_prompt_tokens=256 direct.layers=top:4 direct.steps=30 direct.groups_per_step=16 direct.learning_rate=1e-4 direct.max_length=512 \
    direct.read.on_bad=drop_unfit direct.read.overlong=drop direct.read.max_groups=480 evaluate.every=30 evaluate.prompts=4 evaluate.answers=2 "${@:2}"
}
for part in "${parts[@]}"; do
  for seed in ${SEEDS:-0 1 2}; do
    case $part in
      train)
        trained dense "dense/$seed" "${tuned[@]}"
        trained umm "umm/$seed" "${tuned[@]}" upcycle.n_experts=4 upcycle.n_active=2 merge.steps=10
        ;;
      whole) for recipe in dense umm; do judge "$recipe/$seed/model" "judged/$recipe/$seed/whole" "$data/llmbar" "$data/rm-bench" layers=top:4; done ;;
      fifth) for recipe in dense umm; do judge "$recipe/$seed/model" "judged/$recipe/$seed/fifth" "$data/rmb" "$data/hh-rlhf" split=0.2 layers=top:4; done ;;
      reform)
        policy aligned
        policy flipped direct.read.label_noise=1
        trained reform "reform/$seed" "${tuned[@]}" reform.aligned="$out/aligned/model" reform.flipped="$out/flipped/model" \
          reform.share=0.02 reform.max_new_tokens=32 reform.perturbed=50
        few "reform/$seed/members/0/model" judged_few dense layers=top:4  # the model that was searched: trained as dense is
        few "reform/$seed/model" judged_few reform layers=top:4
        ;;
      activation)
        [[ -f $out/biased.jsonl ]] || python examples/preference_hack.py "$out/biased.jsonl" "$data"/llmbar/*Natural*
        trained dense "small/dense/$seed" "${tuned[@]}" read.max_groups=500
        trained activation "small/activation/$seed" read.max_groups=500 activation.heads.masks=1  # another by every seed
        judge "small/dense/$seed/model" "judged_activation/dense/$seed/llmbar" "$data/llmbar" layers=top:4
        judge "small/dense/$seed/model" "judged_activation/dense/$seed/biased" "$out/biased.jsonl" layers=top:4
        judge "small/activation/$seed/model" "judged_activation/activation/$seed/llmbar" "$data/llmbar"
        judge "small/activation/$seed/model" "judged_activation/activation/$seed/biased" "$out/biased.jsonl"
        ;;
    esac
  done
done
