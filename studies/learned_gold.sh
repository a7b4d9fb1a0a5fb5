#!/usr/bin/env bash
# The study of learned_gold.yaml from real preferences on: studies/learned_gold.sh DATA OUT
# DATA: a folder with hh-rlhf/, alpaca_eval/, rmb/, webgpt_comparisons/, helpsteer2_gold/ and llamafactory/ in their published formats.
set -euo pipefail
data=$1 out=$2
prompts=$data/alpaca_eval/alpaca_eval_gpt4.jsonl.gz
preferences=$data/hh-rlhf,$prompts,$data/rmb/pairwise_helpfulness.jsonl.gz,$data/rmb/pairwise_harmlessness.jsonl.gz
preferences+=,$data/webgpt_comparisons,$data/helpsteer2_gold,$data/llamafactory/dpo_en_demo.jsonl.gz
gold=$out/gold/model

[[ -f $out/gold/report.json ]] || rewardproof train dense "$out/gold" --overwrite model=embedded:smollm2-135m data="$preferences" split=0.05 \
  layers=top:12 max_length=320 read.on_bad=drop_unfit read.overlong=drop read.max_groups=4000 read.max_held_out=300 head.init=normal \
  trainer.learning_rate=1e-4 trainer.num_train_epochs=1 trainer.per_device_train_batch_size=16

# Answers to the prompts of two ranges that share none; the gold model is the one judged here, which costs a pass and nothing else.
answers() {  # NAME ANSWERS RANGE PROMPTS
  local run=$out/sampled/$1 again=()
  [[ -d $run ]] && again=(--resume)
  [[ -f $run/report.json ]] || rewardproof stress "$gold" "$run" "${again[@]}" pool="$prompts" gold="$gold" sample="$2" share="$3" \
    prompts="$4" max_new_tokens=64
  [[ -f $out/$1.jsonl ]] || rewardproof score "$gold" "$run/pools.jsonl" "$out/$1.jsonl" --overwrite on_bad=drop
}
answers train 8 0.0,0.85 400
answers pool 64 0.85,1.0 60

rewardproof study studies/learned_gold.yaml "$out/study" paths.TRAIN="$out/train.jsonl" paths.POOL="$out/pool.jsonl" "${@:3}"
