// The word-level difference of two texts. Pure: texts in, parts out.

const WORDS = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]\s*|[\p{L}\p{N}\p{M}]+(?:['’]\p{L}+|[\u200c\u200d][\p{L}\p{N}\p{M}]+)*\s*|\p{ExtPict}[\p{M}\p{EMod}]*(?:\u200d\p{ExtPict}[\p{M}\p{EMod}]*)*\s*|[^\p{L}\p{N}\p{M}\s]\s*|\s+/gu;
const MOST_CELLS = 4e7;

// Parts in order, each {same: [in a, in b]} or {del, ins}: a longest common subsequence of words, white space aside.
function compare(a, b) {
  const x = a.match(WORDS) ?? [], y = b.match(WORDS) ?? [];
  const kx = x.map((w) => w.trim()), ky = y.map((w) => w.trim());
  let head = 0, tail = 0;
  while (head < x.length && head < y.length && kx[head] === ky[head]) head++;
  while (tail < x.length - head && tail < y.length - head && kx.at(-1 - tail) === ky.at(-1 - tail)) tail++;
  const n = x.length - head - tail, m = y.length - head - tail, width = m + 1;
  const tooLong = (n + 1) * width > MOST_CELLS;
  const table = tooLong ? null : new Uint16Array((n + 1) * width);
  if (table) for (let i = n - 1; i >= 0; i--) for (let j = m - 1; j >= 0; j--) {
    table[i * width + j] = kx[head + i] === ky[head + j] ? table[(i + 1) * width + j + 1] + 1
      : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
  }
  const runs = [];
  const add = (kind, from, to) => {
    const last = runs.at(-1), run = last && (last.kind === kind) ? last : { kind, from: "", to: "" };
    if (run !== last) runs.push(run);
    run.from += from;
    run.to += to;
  };
  for (let i = 0; i < head; i++) add("same", x[i], y[i]);
  let i = 0, j = 0;
  while (i < n || j < m) {
    if (i < n && j < m && table && kx[head + i] === ky[head + j]) add("same", x[head + i++], y[head + j++]);
    else if (j >= m || (i < n && (!table || table[(i + 1) * width + j] >= table[i * width + j + 1]))) add("change", x[head + i++], "");
    else add("change", "", y[head + j++]);
  }
  for (let k = tail; k > 0; k--) add("same", x.at(-k), y.at(-k));
  const parts = readable(runs).map(({ kind, from, to }) => kind === "same" ? { same: [from, to], del: "", ins: "" } : { del: from, ins: to });
  parts.tooLong = tooLong;
  return parts;
}

// A few common letters between two longer changes only break them up: they become part of one change.
function readable(runs) {
  const out = [];
  const size = (run) => Math.max(run.from.trim().length, run.to.trim().length);
  runs.forEach((run, k) => {
    const before = out.at(-1), after = runs[k + 1];
    const joins = before?.kind === "change" &&
      (run.kind === "change" || (after && 2 * size(run) <= Math.min(size(before), size(after), 20)));
    if (joins) { before.from += run.from; before.to += run.to; } else out.push({ ...run });
  });
  return out;
}
