// A run's figures, folded from its first `shown` passes: the same as Python's `trace.ledger`, by the same names. Both
// are tested against the same recorded runs.

import { deepest } from "./protocol.js";

export const sum = (values) => values.reduce((a, b) => a + b, 0);

export function median(values) {
  if (!values.length) return null;
  const sorted = Float64Array.from(values).sort();
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

const highest = (values) => values.reduce((a, b) => Math.max(a, b), 0);

export function ledger(lane, shown = lane.passes.length) {
  const passes = lane.passes.slice(0, shown);
  const last = passes[passes.length - 1];
  const tokens = last ? last.sumTokens : 0;
  const drafted = last ? last.sumDrafted : 0;
  const accepted = last ? last.sumAccepted : 0;
  const drafts = passes.filter((p) => p.drafted).length;
  const decode = last ? last.t - lane.read : 0;
  return {
    prompt_tokens: lane.promptTokens,
    new_tokens: tokens,
    passes: passes.length,
    tokens_per_pass: last ? tokens / passes.length : 0,
    drafted,
    accepted,
    acceptance_rate: drafted ? accepted / drafted : null,
    drafts,
    mean_acceptance_length: drafts ? 1 + accepted / drafts : null,
    prefill_seconds: lane.read,
    ttft_seconds: last ? passes[0].t : null,
    decode_seconds: decode,
    decode_tokens_per_second: decode > 0 ? tokens / decode : 0,
    seconds_per_pass_median: median(passes.map((p) => p.seconds)),
    weight_bytes: lane.weightBytes,
    copies_bytes: lane.copiesBytes,
    auxiliary_bytes: lane.partsBytes,
    kv_bytes_peak: highest([lane.prefillPeak.bytes, ...passes.map((p) => p.kv)]),
    kv_rows_peak: highest([lane.prefillPeak.rows, ...passes.map((p) => deepest(p.rows))]),
    activation_bytes_peak: highest([lane.prefillPeak.activations, ...passes.map((p) => p.activations)]),
    memory_bytes_peak: lane.weightBytes + highest([lane.prefillPeak.held, ...passes.map((p) => p.kv + p.activations)]),
    layers_run_mean: last ? sum(passes.map((p) => p.layers)) / passes.length : null,
    ...computed(lane, passes, tokens),
    evicted_rows: lane.evictedBefore + sum(passes.map((p) => p.evicted)),
  };
}

// What was computed for the prompt and per new token; null where a trace did not count it.
function computed(lane, passes, tokens) {
  const rows = sum(passes.map((p) => p.layerRows));
  const flops = sum(passes.map((p) => p.flops));
  const read = lane.prefill?.layerRows ? lane.prefill : null;
  const counted = (value) => (rows ? value : null);
  const perToken = (value) => (rows && tokens ? value / tokens : null);
  return {
    prefill_layer_rows: read ? read.layerRows : null,
    prefill_flops: read ? read.flops : null,
    layer_rows: counted(rows),
    kv_only_rows: counted(sum(passes.map((p) => p.kvOnly))),
    drafter_layer_rows: counted(sum(passes.map((p) => p.drafterRows))),
    layer_rows_per_token: perToken(rows),
    flops: counted(flops),
    flops_per_token: perToken(flops),
  };
}
