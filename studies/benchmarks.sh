#!/usr/bin/env bash
# Public benchmarks of models trained on real preferences, three seeds: studies/benchmarks.sh DATA OUT
# DATA: a folder with hh-rlhf/, webgpt_comparisons/, llamafactory/, llmbar/, rm-bench/ and rmb/ in their published formats. LLMBar and RM-Bench
# are judged whole, RMB and HH-RLHF on the fifth of prompts that training holds out. Then: scripts/results.py judged benchmarks OUT/judged
# '$DATA=DATA' '$OUT=OUT'
set -euo pipefail
data=$1 out=$2
preferences=$data/hh-rlhf,$data/webgpt_comparisons,$data/llamafactory/dpo_en_demo.jsonl.gz
judge() {  # RECIPE SEED NAME DATA…
  local run=$out/judged/$1/$2/$3 again=()
  [[ -d $run ]] && again=(--resume)
  [[ -f $run/report.json ]] || rewardproof evaluate "$out/$1/$2/model" "${@:4}" --out "$run" "${again[@]}" layers=top:4
}
for seed in 0 1 2; do
  for recipe in dense umm; do
    experts=()
    [[ $recipe == umm ]] && experts=(upcycle.n_experts=4 upcycle.n_active=2 merge.steps=10)
    [[ -f $out/$recipe/$seed/report.json ]] || rewardproof train "$recipe" "$out/$recipe/$seed" --overwrite model=embedded:smollm2-135m \
      data="$preferences" split=0.2 seed="$((1000 * seed))" layers=top:4 max_length=512 read.on_bad=drop_unfit read.overlong=drop \
      read.max_held_out=100 head.init=normal trainer.learning_rate=1e-4 trainer.num_train_epochs=1 \
      trainer.per_device_train_batch_size=16 "${experts[@]}"
    judge "$recipe" "$seed" whole "$data/llmbar" "$data/rm-bench"
    judge "$recipe" "$seed" fifth "$data/rmb" "$data/hh-rlhf" split=0.2
  done
done
